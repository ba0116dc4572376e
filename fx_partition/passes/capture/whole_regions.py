"""Regions that no partition can enter again, so that they stay whole; `autocast_regions` has the others.

They are inference mode, records of a profiler, and the regions of `torch.func` (vmap, grad, jvp), whose tensors mean
nothing outside of them::

    _vmap_increment_nesting(4, "error")          opens
    _add_batch_dim = _add_batch_dim(relu, 0, 1)  a tensor of `torch.func`
    tanh = torch.tanh(_add_batch_dim)
    _remove_batch_dim = _remove_batch_dim(tanh, 1, 4, 0)
    _vmap_decrement_nesting()                    closes

A view that is made where gradients are switched off stays with its readers, for another reason: see
`views_without_gradient`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.fx

from .autocast_regions import is_region_handle, leaves_autocast, sets_grad_mode
from .captured_graph import CapturedGraph
from .fake_tensors import is_view
from .tensor_storage import storage_key

_NESTING = ("_increment_nesting", "_decrement_nesting")
# {function that opens a region of torch.func: the one that closes it, "" if it opens and closes in one call}
_FUNC_MODES = {
    "_saved_tensors_hooks_disable": "_saved_tensors_hooks_enable",
    "_saved_tensors_hooks_enable": "",
    "_set_fwd_grad_enabled": "",
    "set_inplace_requires_grad_allowed": "",
}
_ENTER, _LEAVE = (("_enter_inference_mode", "_vmap_increment_nesting"),
                  ("_exit_inference_mode", "_vmap_decrement_nesting"))  # fmt: skip


def is_replayed(node: torch.fx.Node) -> bool:
    """Whether a node opens a region that every partition in it enters again."""
    return is_region_handle(node) or sets_grad_mode(node)


def is_region(node: torch.fx.Node) -> bool:
    """Whether a node enters or leaves a mode."""
    name = _name(node)
    return "enter" in name or "exit" in name or is_replayed(node) or name in _FUNC_MODES or name.endswith(_NESTING)


def opens_whole_region(node: torch.fx.Node) -> bool:
    """Whether a node opens a region that stays whole."""
    return bool(_closer(node, _name(node))) or ("enter" in _name(node) and not is_replayed(node))


def switches_gradients(node: torch.fx.Node) -> bool:
    """Whether a node sets grad mode or enters inference mode."""
    return sets_grad_mode(node) or _name(node) == "_enter_inference_mode"


@contextlib.contextmanager
def left_modes(graph: torch.fx.Graph, values: Mapping[torch.fx.Node, Any]) -> Iterator[None]:
    """Leave the modes (autocast, inference mode, vmap) that a run of a graph has entered, if it fails in one.

    Args:
        graph: the graph that runs.
        values: the value of each node that has run; filled while the context is open.
    """
    try:
        yield
    except BaseException:
        entered = sum(is_region_handle(node) or _name(node) in _ENTER for node in values)
        left = sum(_leaves(node) for node in values)
        for node in graph.nodes:  # inner regions first, as their exits come first
            due = entered > left and _leaves(node) and node not in values
            if due and all(source in values for source in node.all_input_nodes):
                function: Any = node.target
                function(*torch.fx.map_arg(node.args, values.__getitem__))
                left += 1
        raise


def _leaves(node: torch.fx.Node) -> bool:
    return leaves_autocast(node) or _name(node) in _LEAVE


def whole_regions(nodes: Iterable[torch.fx.Node]) -> list[tuple[torch.fx.Node, torch.fx.Node]]:
    """Return (first, last) of each region that stays whole, inner ones too; one never left lasts to the last node."""
    found: list[tuple[torch.fx.Node, torch.fx.Node]] = []
    open_by_name: dict[str, list[torch.fx.Node]] = {}
    last = None
    for node in nodes:
        if node.op == "output":
            continue
        last = node
        name = _name(node)
        if open_by_name.get(name):
            found.append((open_by_name[name].pop(), node))
        elif _opens_none(name):
            continue
        elif closer := _closer(node, name):
            open_by_name.setdefault(closer, []).append(node)
        elif "enter" in name and not is_replayed(node) and node.users:
            found.append((node, list(node.users)[-1]))
    never_left = [node for opened in open_by_name.values() for node in opened]
    return found + [(node, last) for node in never_left if last is not None]


def inside_whole_regions(graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
    """Return {node: the first node of the outermost region that stays whole}, for all nodes of such regions."""
    last_of = dict(whole_regions(graph.nodes))
    found: dict[torch.fx.Node, torch.fx.Node] = {}
    first = None
    waiting: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node in last_of:
            first = first or node
            waiting.add(last_of[node])
        if first is not None:
            found[node] = first
        waiting.discard(node)
        if not waiting:
            first = None
    return found


def in_other_grad_mode(graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
    """Return {node: the node that set its grad mode}, for all nodes in another mode than the graph begins in."""
    found: dict[torch.fx.Node, torch.fx.Node] = {}
    setter: torch.fx.Node | None = None
    other: object = None  # the mode that the first setter sets: tracers write none that sets the mode in force
    for node in graph.nodes:
        if sets_grad_mode(node):
            other = node.args[0] if setter is None else other
            setter = node
        elif setter is not None and setter.args[0] == other:
            found[node] = setter
    return found


def views_without_gradient(captured: CapturedGraph) -> Iterator[torch.fx.Node]:
    """Yield the views made where the graph has switched gradients off, and views of them.

    Such a tensor requires a gradient but passes none on to its base. If a compiled function returned it, AOTAutograd
    would make it again from its base, and then it would pass the gradient on.
    """
    switched_off = {n for n, setter in in_other_grad_mode(captured.gm.graph).items() if setter.args[0] is False}
    found: dict[torch.fx.Node, Hashable] = {}
    for node in captured.gm.graph.nodes if switched_off else ():
        value = captured.values.get(node)
        if not isinstance(value, torch.Tensor) or not value.requires_grad or not is_view(value):
            continue
        key = storage_key(value)
        if node in switched_off or any(found.get(source) == key for source in node.all_input_nodes):
            found[node] = key
    yield from found


def _name(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", ""))


@lru_cache(maxsize=4096)
def _opens_none(name: str) -> bool:
    """Whether no node that calls a function of this name opens a region; cached, as graphs call few functions."""
    return "enter" not in name and not name.endswith("_increment_nesting") and not _FUNC_MODES.get(name)


def _closer(node: torch.fx.Node, name: str) -> str:
    """Return the name of the function that leaves the region which ``node`` enters; "" where an edge leads to it."""
    if name.endswith("_increment_nesting"):
        return name.replace("increment", "decrement")
    if "enter" in name and not is_replayed(node) and not node.users:
        return name.replace("enter", "exit")
    return _FUNC_MODES.get(name, "")
