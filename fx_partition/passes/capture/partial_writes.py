"""Find writes in place: writes that return the whole tensor, and writes to a part of one, which do not.

A part is written by ``out[i] = x``, or through a view: ``out.select(0, i).copy_(x)``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx

from .captured_graph import value_of
from .fake_tensors import fake_mode_of, is_wrapped, run_fake
from .in_place_ops import is_in_place
from .metadata_changes import may_change_metadata
from .operators import OpOverload, schema_of
from .symbolic_sizes import to_expr
from .tensor_storage import storage_key
from .whole_regions import switches_gradients

ALIAS: Callable[..., Any] = torch.ops.aten.alias.default


def returns_self(node: torch.fx.Node) -> bool:
    """Whether a node writes its first argument, a tensor, and returns that very tensor."""
    if not node.args or not isinstance(node.args[0], torch.fx.Node):
        return False
    if isinstance(node.target, OpOverload):
        schema = schema_of(node.target)
        first, results = schema.arguments[0].alias_info, schema.returns
        if first is None or not first.is_write or len(results) != 1 or results[0].alias_info is None:
            return False
        return bool(results[0].alias_info.is_write)
    if node.op not in ("call_function", "call_method"):
        return False
    result, first_value = value_of(node), value_of(node.args[0])
    if not isinstance(result, torch.Tensor) or not isinstance(first_value, torch.Tensor):
        return False
    in_place = is_in_place(node) or node.kwargs.get("inplace") is True
    return in_place and [*map(to_expr, result.shape)] == [*map(to_expr, first_value.shape)]


def is_made(node: torch.fx.Node) -> bool:
    """Whether a node's tensor is neither an input nor a weight."""
    return node.op.startswith("call_")


# Marks the views that are added here, as a model may change the metadata of its own in place.
_MARK = "view_behind_a_write"


def is_view_behind(node: torch.fx.Node) -> bool:
    """Whether a node was written by `view_behind`."""
    return node.target is ALIAS and node.meta.get(_MARK) is True


def view_behind(write: torch.fx.Node, whole: torch.fx.Node) -> None:
    """Add a view of the whole tensor behind a write to a part of it."""
    with write.graph.inserting_after(write):
        view = write.graph.call_function(ALIAS, (whole,))
    key = "val" if "val" in whole.meta else "example_value"
    view.meta = {name: found for name, found in write.meta.items() if name in ("nn_module_stack", "stack_trace")}
    view.meta[_MARK] = True
    view.meta[key] = run_fake(fake_mode_of([value_of(whole)]), ALIAS, (value_of(whole),), {})


def partial_writes(graph: torch.fx.Graph) -> list[tuple[torch.fx.Node, torch.fx.Node]]:
    """Find writes to a part of a tensor that the graph makes and, after the write, uses as a whole.

    Returns:
        (write, whole) in the order of the graph. The list is empty for a graph that switches gradients, as a view that
        is made where they are off may not be written where they are on. It leaves out tensors whose metadata is changed
        in place, since a view of the whole (``contiguous``) may be the very object. It may hold writes to a copy, as
        ``reshape`` makes a view or a copy; the added view then changes nothing.
    """
    if any(map(switches_gradients, graph.nodes)):
        return []
    whole_of: dict[torch.fx.Node, torch.fx.Node] = {}  # for each view, and each other node of the whole tensor
    last_use: dict[torch.fx.Node, int] = {}
    parts: set[torch.fx.Node] = set()
    reshaped: set[torch.fx.Node] = set()
    writes: list[tuple[int, torch.fx.Node, torch.fx.Node]] = []
    for place, node in enumerate(graph.nodes):
        for source in node.all_input_nodes:
            if source not in parts:
                last_use[whole_of.get(source, source)] = place
        first = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
        if first is None or not _has_memory(value_of(first)):
            continue
        whole = whole_of.get(first, first)
        if may_change_metadata(node):
            reshaped.add(whole)
        writes_part = node.target is operator.setitem or (returns_self(node) and first in parts)
        if writes_part and is_made(whole) and not is_view_behind(node.next):
            writes.append((place, node, whole))
        if returns_self(node) or is_view_behind(node) or _is_view(node, first):
            whole_of[node] = whole
            if first in parts or not (returns_self(node) or is_view_behind(node)):
                parts.add(node)
    return [(node, whole) for place, node, whole in writes if last_use[whole] > place and whole not in reshaped]



def _has_memory(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not is_wrapped(value)


def _is_view(node: torch.fx.Node, source: torch.fx.Node) -> bool:
    """Whether a node is a view of a tensor, by the operator's schema or by the storages of the fake values."""
    if isinstance(node.target, OpOverload):
        schema = schema_of(node.target)
        first = schema.arguments[0].alias_info if schema.arguments else None
        return first is not None and not first.is_write and any(r.alias_info is not None for r in schema.returns)
    value, shown = value_of(node), value_of(source)
    if not isinstance(value, torch.Tensor) or not isinstance(shown, torch.Tensor):
        return False
    try:
        return storage_key(value) == storage_key(shown)
    except (NotImplementedError, RuntimeError):  # a tensor without storage
        return False
