"""Activations that are written in place and cross boundaries all the same, as every use is of the newest version.

A version of an activation is a node that shows the whole of it: its maker, a write that returns its first argument, or
a view of the whole behind a write to a part. Each write makes the version before it out of date. Where nobody uses a
version that is out of date, partitions may hand the newest on, and only these stay together: a write to a part with the
version behind it, and a view with its uses and the writes between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.fx

from ..capture.partial_writes import is_view_behind, returns_self
from ..capture.symbolic_sizes import to_expr
from .runs import Reading, Run


def handed_on(
    reading: Reading, place: Mapping[torch.fx.Node, int], memory: int, touches: Sequence[int]
) -> list[list[int]] | None:
    """Return what stays together of the runs that touch a written activation; None where it cannot be handed on.

    Args:
        place: of each node that runs, in the trace.
    """
    made_at = reading.memories[memory].made_at
    if made_at < 0:
        return None
    maker = reading.runs[made_at].node
    if not _is_alone(reading, maker, memory):
        return None
    return _Versions(reading, memory, maker, place).groups(touches)


def _is_alone(reading: Reading, node: torch.fx.Node, memory: int) -> bool:
    value = reading.captured.values.get(node)
    return reading.holds.get(node.name) == (memory,) and isinstance(value, torch.Tensor)


class _Versions:
    def __init__(
        self, reading: Reading, memory: int, maker: torch.fx.Node, place: Mapping[torch.fx.Node, int]
    ) -> None:
        self._reading, self._memory, self._place = reading, memory, place
        self._whole = _shown(reading.captured.values[maker])
        self._newest = maker
        self._views: list[torch.fx.Node] = []
        self._writes: list[int] = []
        self._groups: list[list[int]] = []

    def groups(self, touches: Sequence[int]) -> list[list[int]] | None:
        for t in touches:
            if not self._pass(t, self._reading.runs[t]):
                return None
        output = next(iter(reversed(self._reading.captured.gm.graph.nodes)))
        if any(self._is_outdated(source) for source in output.all_input_nodes):
            return None
        through: dict[torch.fx.Node, set[int]] = {}
        for view in self._views:
            through[view] = {self._place[view]}.union(*(through.get(source, ()) for source in view.all_input_nodes))
            uses = [self._place[user] for user in view.users if user in self._place]
            if len(uses) < len(view.users):  # the graph returns it, and it must see later writes
                if self._writes and self._writes[-1] > self._place[view]:
                    return None
                continue
            until = max(uses, default=self._place[view])
            between = [write for write in self._writes if self._place[view] < write <= until]
            if between:
                self._groups.append(sorted({*through[view], *uses, *between}))
        return self._groups

    def _pass(self, t: int, run: Run) -> bool:
        """Go past one run; False where it uses a version that is out of date, or leaves none."""
        node = run.node
        if node is self._newest:
            return True
        used = [source for source in node.all_input_nodes if self._memory in self._held(source)]
        if any(self._is_outdated(source) for source in used):
            return False
        if self._memory in run.writes:
            self._writes.append(t)
            if used == [self._newest] and returns_self(node) and node.args[0] is self._newest:
                self._newest = node
                return True
            behind = next((user for user in self._newest.users if is_view_behind(user) and user.prev is node), None)
            if behind is None:
                return False
            self._groups.append([t, self._place[behind]])
            self._newest = behind
        if self._memory in self._held(node):
            self._views.append(node)
        return True

    def _held(self, node: torch.fx.Node) -> tuple[int, ...]:
        return self._reading.holds.get(node.name, ())

    def _is_outdated(self, node: torch.fx.Node) -> bool:
        if node is self._newest or not _is_alone(self._reading, node, self._memory):
            return False
        return _shown(self._reading.captured.values[node]) == self._whole


def _shown(value: torch.Tensor) -> list[object]:
    return [value.dtype, *map(to_expr, (*value.shape, *value.stride(), value.storage_offset()))]
