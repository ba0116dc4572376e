"""Regions that no partition can enter again, so that they stay whole; `autocast_regions` has those that are entered
again.

They are inference mode, records of a profiler, and the regions of `torch.func` (vmap, grad, jvp), whose tensors mean
nothing outside of them::

    _vmap_increment_nesting(4, "error")          opens
    _add_batch_dim = _add_batch_dim(relu, 0, 1)  a tensor of `torch.func`
    tanh = torch.tanh(_add_batch_dim)
    _remove_batch_dim = _remove_batch_dim(tanh, 1, 4, 0)
    _vmap_decrement_nesting()                    closes

A view that is made where gradients are switched off stays with what takes it, for another reason: see
`views_without_gradient`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

import torch
import torch.fx

from .captured_graph import CapturedGraph
from .fake_tensors import is_view
from .tensor_storage import storage_key

_REPLAYED = ("_enter_autocast", "_set_grad_enabled")
_NESTING = ("_increment_nesting", "_decrement_nesting")
_FUNC_MODES = {
    "_saved_tensors_hooks_disable": "_saved_tensors_hooks_enable",
    "_saved_tensors_hooks_enable": "",
    "_set_fwd_grad_enabled": "",
    "set_inplace_requires_grad_allowed": "",
}


def is_replayed(node: torch.fx.Node) -> bool:
    """Whether a node opens a region that every partition in it enters again."""
    return getattr(node.target, "__name__", "") in _REPLAYED


def is_region(node: torch.fx.Node) -> bool:
    """Whether a node enters or leaves a mode."""
    name = getattr(node.target, "__name__", "")
    return "enter" in name or "exit" in name or name in _REPLAYED or name in _FUNC_MODES or name.endswith(_NESTING)


def whole_regions(nodes: Iterable[torch.fx.Node]) -> list[tuple[torch.fx.Node, torch.fx.Node]]:
    """(first, last) of each region that stays whole, inner ones too; one that is never left lasts to the last node."""
    found: list[tuple[torch.fx.Node, torch.fx.Node]] = []
    open_by_name: dict[str, list[torch.fx.Node]] = {}
    last = None
    for node in nodes:
        if node.op == "output":
            continue
        last = node
        name = getattr(node.target, "__name__", "")
        if open_by_name.get(name):
            found.append((open_by_name[name].pop(), node))
        elif closer := _closer(node, name):
            open_by_name.setdefault(closer, []).append(node)
        elif "enter" in name and not is_replayed(node) and node.users:
            found.append((node, list(node.users)[-1]))
    never_left = [node for opened in open_by_name.values() for node in opened]
    return found + [(node, last) for node in never_left if last is not None]


def inside_whole_regions(graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
    """{node: the first node of the outermost region that stays whole}, for all nodes of such regions."""
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
    """{node: the node that set its grad mode}, for all nodes in another mode than that in which the graph begins."""
    found: dict[torch.fx.Node, torch.fx.Node] = {}
    setter: torch.fx.Node | None = None
    other: object = None  # what the first sets, as none is there to set the mode that is in force
    for node in graph.nodes:
        if getattr(node.target, "__name__", "") == "_set_grad_enabled":
            other = node.args[0] if setter is None else other
            setter = node
        elif setter is not None and setter.args[0] == other:
            found[node] = setter
    return found


def views_without_gradient(captured: CapturedGraph) -> Iterator[torch.fx.Node]:
    """The views made where the graph has switched gradients off, and views of them.

    Such a tensor says that it requires a gradient, and hands none on. What a compiled function returns of that kind is
    made again from its base, and does hand it on.
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


def _closer(node: torch.fx.Node, name: str) -> str:
    """The name of the function that leaves a region, where no edge leads to it; "" elsewhere."""
    if name.endswith("_increment_nesting"):
        return name.replace("increment", "decrement")
    if "enter" in name and not is_replayed(node) and not node.users:
        return name.replace("enter", "exit")
    return _FUNC_MODES.get(name, "")
