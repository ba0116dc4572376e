"""Follow on-chip memory over a long stream: a run whose first state was seen before is looked up.

A device repeats its runs, so after the first requests the states of its memory repeat too. Only the first requests of a
stream are followed access by access, however long it is.

Example: a cache that holds its partition is empty at the first run, and full at all others: two runs are followed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fx_partition.passes.timing.partition_work import Key, PartitionWork

from .cache_model import Moved, Residency


class Recurrent:
    """The memory of one device, which looks up runs that it has seen.

    Args:
        memory: the memory before its first run.
        works: the work of all partitions.
        hopped: for each partition, the received values that a link writes into this memory before a run.
    """

    def __init__(self, memory: Residency, works: Sequence[PartitionWork], hopped: Sequence[frozenset[Key]]) -> None:
        self._memory, self._works, self._hopped = memory, works, hopped
        start = memory.state()
        self._states: list[Hashable] = [start]
        self._numbers: dict[Hashable, int] = {start: 0}
        self._known: dict[tuple[int, int], tuple[Moved, int]] = {}  # (state, partition) -> moved, the next state
        self._now = 0
        self._followed = 0  # the state in which the memory itself is

    def run(self, partition: int) -> Moved:
        """Return the bytes that one run of a partition moves off chip."""
        key = (self._now, partition)
        if key not in self._known:
            self._known[key] = self._follow(partition)
        moved, self._now = self._known[key]
        return moved

    def _follow(self, partition: int) -> tuple[Moved, int]:
        if self._followed != self._now:
            self._memory.restore(self._states[self._now])
        moved = self._memory.run(self._works[partition], self._hopped[partition])
        state = self._memory.state()
        self._followed = self._numbers.setdefault(state, len(self._states))
        if self._followed == len(self._states):
            self._states.append(state)
        return moved, self._followed
