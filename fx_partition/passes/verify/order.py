"""What must run before what: by data, by writes, by effects, and by regions that change how the nodes in them run.

Before (runs)::

    linear = F.linear(x, w);  draw = torch.rand_like(x);  relu_ = linear.relu_();  drop = F.dropout(draw);  neg = -relu_

After (needs)::

    linear: -;  draw: -;  relu_: linear;  drop: draw;  neg: relu_
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..capture.whole_regions import is_region
from ..constraints.dependencies import has_effect
from .runs import Reading


@dataclass(frozen=True)
class Needs:
    """What must run before each run, by its place in the trace.

    Attributes:
        direct: for each run those that must come before it; what follows through others is left out.
        barriers: runs that enter or leave a mode: all that the trace has before one must run before it, and all that
            it has behind one must run behind it.
    """

    direct: Sequence[Sequence[int]]
    barriers: Sequence[int]

    def edges(self) -> Iterator[tuple[int, int]]:
        """Yield (before, after), barriers included: the run at one needs all since the one before it."""
        barriers = set(self.barriers)
        barrier = -1
        for t, found in enumerate(self.direct):
            yield from ((before, t) for before in found)
            if t in barriers:
                yield from ((before, t) for before in range(max(barrier, 0), t))
                barrier = t
            elif barrier >= 0:
                yield barrier, t


def find_needs(reading: Reading) -> Needs:
    """Return what must run before what; one pass over the runs and what they touch."""
    place = {run.node: t for t, run in enumerate(reading.runs)}
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    direct: list[list[int]] = []
    effect = -1
    for t, run in enumerate(reading.runs):
        before = {place[source] for source in run.node.all_input_nodes if source in place}
        for memory in run.touches.keys() | run.writes:
            if memory in writer:
                before.add(writer[memory])
            if memory in run.writes:
                before.update(readers.pop(memory, ()))
                writer[memory] = t
            else:
                readers.setdefault(memory, []).append(t)
        if run.draws or has_effect(run.node):
            if effect >= 0:
                before.add(effect)
            effect = t
        before.discard(t)
        direct.append(sorted(before))
    return Needs(direct, [t for t, run in enumerate(reading.runs) if is_region(run.node)])


def too_early(reading: Reading, needs: Needs, place: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Yield (run, one that must run before it) for each pair that a plan has the other way round.

    Args:
        place: of each run in the plan's order.
    """
    for t, found in enumerate(needs.direct):
        yield from ((t, before) for before in found if place[before] > place[t])
    count = len(needs.direct)
    latest, earliest = -1, count  # the runs whose places are the extremes so far
    last_before: dict[int, int] = {}
    for t in range(count):
        last_before[t] = latest
        if latest < 0 or place[t] > place[latest]:
            latest = t
    first_behind: dict[int, int] = {}
    for t in reversed(range(count)):
        first_behind[t] = earliest
        if earliest == count or place[t] < place[earliest]:
            earliest = t
    for barrier in needs.barriers:
        before, behind = last_before[barrier], first_behind[barrier]
        if before >= 0 and place[before] > place[barrier]:
            yield barrier, before
        if behind < count and place[behind] < place[barrier]:
            yield behind, barrier
