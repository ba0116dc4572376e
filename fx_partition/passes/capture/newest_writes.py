"""Make each use of a tensor that is written in place refer to the newest result of a write.

The graph computes the same, but reads as if each write made a new tensor::

    before                                        after `use_newest`
    out = zeros(8)                                out = zeros(8)
    add_ = out.index_add_(0, i, a)                add_ = out.index_add_(0, i, a)
    add__1 = out.index_add_(0, j, b)              add__1 = add_.index_add_(0, j, b)
    return out                                    return add__1

A write to a part of a tensor has no such result, so a view of the whole tensor is added to the graph::

    out = empty(3, 8)                             out = empty(3, 8)
    out[0] = a                                    out[0] = a;    alias = aten.alias(out)
    out[1] = b                                    alias[1] = b;  alias_1 = aten.alias(alias)
    return out                                    return alias_1
"""

from __future__ import annotations

import copy

import torch
import torch.fx

from .module_members import hand_over
from .partial_writes import is_made, is_view_behind, partial_writes, returns_self, view_behind


def with_newest(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return a graph changed by `use_newest`: the given one if nothing changes, or a copy that shares its tensors."""
    if not _outdated(gm.graph) and not partial_writes(gm.graph):
        return gm
    graph = copy.deepcopy(gm.graph)  # copies its codegen too, which knows the pytrees
    use_newest(graph)
    result = torch.fx.GraphModule(gm, graph)
    hand_over(gm, result)  # GraphModule leaves out what the graph does not read
    result.meta = dict(gm.meta)
    result.training = gm.training
    return result


def use_newest(graph: torch.fx.Graph) -> bool:
    """Make each use of a tensor that is written in place refer to the result of the last write before it.

    The two are one tensor, so the graph computes the same. See the module's docstring.

    Returns:
        Whether this changed the graph.
    """
    for write, whole in partial_writes(graph):
        view_behind(write, whole)
    outdated = _outdated(graph)
    for user, source, newest in outdated:
        user.replace_input_with(source, newest)
    return bool(outdated)


def _outdated(graph: torch.fx.Graph) -> list[tuple[torch.fx.Node, torch.fx.Node, torch.fx.Node]]:
    """Return each (user, the input that it reads, the newest result of a write to that input)."""
    found = []
    root: dict[torch.fx.Node, torch.fx.Node] = {}
    newest: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last = newest.get(root.get(source, source), source)
            if last is not source:
                found.append((node, source, last))
        if (returns_self(node) or is_view_behind(node)) and is_made(node.args[0]):
            first = root.setdefault(node.args[0], node.args[0])
            root[node] = first
            newest[first] = node
    return found
