"""Find values that are written in place and may cross a boundary all the same: each partition hands them on.

A value that is accumulated (``out.index_add_(...)`` for each expert) would otherwise keep all steps from its producer
to its last write in one partition. Where every use is of the newest result (see `newest_writes`), the graph reads as if
each write made a new tensor, and a partition may write a tensor that it has received.

`split` runs the partitions one after another in one memory, and they all write the same tensor. A compiled stage
writes a copy of the tensor that it received, and the next stage receives the copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.fx

from ..capture.captured_graph import CapturedGraph
from ..capture.partial_writes import is_view_behind, returns_self
from ..capture.symbolic_sizes import to_expr
from ..footprint.graph_memory import GraphMemory


def handed_on(captured: CapturedGraph, memory: GraphMemory) -> dict[int, list[list[int]]]:
    """Find the written values that may cross boundaries.

    Returns:
        For each of these values the groups of steps that must still stay together: a view, the steps that use it, and
        the writes between.
    """
    written = {value for step in memory.steps for value in step.writes}
    reshaped = {value for step in memory.steps for value in step.reshapes}
    touches: dict[int, list[int]] = {value: [] for value in written - reshaped}
    for index, step in enumerate(memory.steps):
        for value in step.values:
            if value in touches:
                touches[value].append(index)
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    found = {value: _Tensor(captured, memory, nodes, value).groups(steps) for value, steps in touches.items()}
    return {value: groups for value, groups in found.items() if groups is not None}


class _Tensor:
    """One value that is written in place."""

    def __init__(
        self, captured: CapturedGraph, memory: GraphMemory, nodes: Mapping[str, torch.fx.Node], number: int
    ) -> None:
        self._captured, self._memory, self._nodes, self._number = captured, memory, nodes, number
        self._index = {step.node: i for i, step in enumerate(memory.steps)}

    def groups(self, touches: Sequence[int]) -> list[list[int]] | None:
        """Return the groups that stay together; None if the order of its uses does not tell which version each uses."""
        made_at = self._memory.values[self._number].made_at
        if made_at < 0:
            return None
        newest = maker = self._nodes[self._memory.steps[made_at].node]
        if self._held(maker) != (self._number,) or not isinstance(self._captured.values.get(maker), torch.Tensor):
            return None
        views: list[torch.fx.Node] = []
        writes: list[int] = []
        groups: list[list[int]] = []
        for at in touches:
            step = self._memory.steps[at]
            node = self._nodes[step.node]
            if node is newest:
                continue
            used = [source for source in node.all_input_nodes if self._number in self._held(source)]
            if any(self._is_whole(source, maker) and source is not newest for source in used):
                return None
            if self._number in step.writes:
                writes.append(at)
                if used == [newest] and returns_self(node) and node.args[0] is newest:
                    newest = node
                    continue
                version = next((user for user in newest.users if is_view_behind(user) and user.prev is node), None)
                if version is None:
                    return None
                groups.append([at, self._index[version.name]])
                newest = version
            if self._number in self._held(node):
                views.append(node)
        output = next(iter(reversed(self._captured.gm.graph.nodes)))
        if any(self._is_whole(source, maker) and source is not newest for source in output.all_input_nodes):
            return None
        kept = self._kept(views, writes)
        return None if kept is None else [*groups, *kept]

    def _kept(self, views: Sequence[torch.fx.Node], writes: Sequence[int]) -> list[list[int]] | None:
        """Return the groups of views that later writes change; None if the graph returns such a view."""
        groups = []
        seen_through: dict[torch.fx.Node, set[int]] = {}  # each view, with the views that it is a view of
        for view in views:
            seen_through[view] = {self._index[view.name]}.union(
                *(seen_through.get(source, ()) for source in view.all_input_nodes)
            )
            uses = [self._index.get(user.name) for user in view.users]
            made = self._index[view.name]
            if None in uses:  # the graph returns the view, which must show later writes: a copy would not
                if any(write > made for write in writes):
                    return None
                continue
            between = [write for write in writes if made < write <= max(filter(None, uses), default=made)]
            if between:
                groups.append(sorted({*seen_through[view], *filter(None, uses), *between}))
        return groups

    def _held(self, node: torch.fx.Node) -> tuple[int, ...]:
        return self._memory.holds.get(node.name, ())

    def _is_whole(self, node: torch.fx.Node, maker: torch.fx.Node) -> bool:
        """Return whether a node is the tensor itself, or a view of the same dtype and layout."""
        value, made = self._captured.values.get(node), self._captured.values[maker]
        if self._held(node) != (self._number,) or not isinstance(value, torch.Tensor):
            return False
        return value.dtype == made.dtype and _layout(value) == _layout(made)


def _layout(value: torch.Tensor) -> list[Any]:
    return [*map(to_expr, chain(value.shape, value.stride(), (value.storage_offset(),)))]


def received_writes(memory: GraphMemory, partitions: Sequence[Sequence[str]]) -> list[frozenset[str]]:
    """Return, for each partition, the names of the nodes that it receives and writes.

    Args:
        memory: the graph's.
        partitions: the names of the nodes of each partition.
    """
    steps = {step.node: step for step in memory.steps}
    holders: dict[int, list[str]] = {}
    for name, values in memory.holds.items():
        for value in values:
            holders.setdefault(value, []).append(name)
    found = []
    for nodes in partitions:
        own = set(nodes)
        written = {value for name in nodes if name in steps for value in steps[name].writes}
        found.append(frozenset(n for value in written for n in holders.get(value, ()) if n not in own))
    return found
