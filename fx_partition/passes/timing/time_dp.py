"""Find the boundaries of least time by a device's `roofline.Roofline`, among plans of at most a given size.

Terms
-----
time
    The time of a partition is that of its run (see `roofline`). The time of a plan depends on the objective.
    "throughput": the longest of its runs and hops, because each takes the next request as soon as it is free.
    "latency": the sum of all runs and hops, because a request passes through all of them.
feasible
    A partition is feasible if its bytes are within the limit, or if it is a single atom.

The time of a run never falls when the partition grows. Nor do the bytes that a partition with a given start receives.
So under a cap on runs and hops, the possible ends of a partition are one range, from the position after its start to
its *reach*. The positions at which k partitions can end are one range too. Therefore one walk finds the fewest
partitions under a cap: it always takes the farthest reach of all starts so far. A bisection over caps, down to a
millionth, finds the throughput.

The least sum is a shortest path with a limited number of edges, computed layer by layer. For throughput it chooses the
plan of least latency under the best cap. It looks at each feasible partition once. If there are more than `MOST_RUNS`
of them, it places boundaries only where the fewest bytes are live, at one position in each group of neighbours: then
the latency may not be the least, but the throughput still is. If more than 64 values are live over a boundary, the
next partition is assumed to receive all of them at once.

Example, three atoms of 2, 2 and 3 s (0.5 s for a hop), two partitions: throughput ``[0, 2, 3]``, 4 s; latency
``[0, 3]``, 7 s.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from ..partitioner.contraction import Contraction
from ..partitioner.sliding_window import Window
from .partition_work import PartitionWork
from .roofline import Roofline

MOST_RUNS = 1 << 20
_FINITE = sys.float_info.max  # a cap that forbids only infinite times
_CLOSE = 1e-6  # of the best cap
_MOST_LIVE = 64


@dataclass(frozen=True)
class Fastest:
    """The fastest plan.

    Attributes:
        boundaries: atom indices ``[0, ..., num_atoms]``.
        seconds: the plan's time under the objective.
    """

    boundaries: list[int]
    seconds: float


def fastest(
    contraction: Contraction, works: Sequence[PartitionWork], speed: Roofline, objective: str, most: int, limit: int
) -> Fastest | None:
    """Return the plan of least time; None if no plan can run, because a device without off-chip memory is too small.

    Args:
        contraction: the chain.
        works: the work of each atom.
        speed: the roofline of every device.
        objective: "throughput" or "latency".
        most: the largest number of partitions.
        limit: the most bytes of a partition of several atoms; some plan of ``most`` partitions must meet it.
    """
    n = contraction.num_atoms
    if n == 0:
        return Fastest([0], 0.0)
    clock = _Clock(contraction, works, speed)
    best = clock.walk(_FINITE, most, limit)
    if best is None:
        return None
    if objective == "latency":
        return _least_sum(clock, most, limit, _FINITE, best)
    low = max(map(clock.alone, range(n)))
    high = clock.longest(best)
    while high > low * (1 + _CLOSE):
        middle = (low + high) / 2
        found = clock.walk(middle, most, limit)
        if found is None:
            low = middle
        else:
            best, high = found, min(high, clock.longest(found))
    return Fastest(_least_sum(clock, most, limit, high, best).boundaries, high)


def seconds_of(
    contraction: Contraction, works: Sequence[PartitionWork], speed: Roofline, objective: str, boundaries: Sequence[int]
) -> float:
    """Return the time of given boundaries under an objective."""
    clock = _Clock(contraction, works, speed)
    return clock.longest(boundaries) if objective == "throughput" else clock.total(boundaries)


class _Clock:
    """Computes times of partitions of one chain."""

    def __init__(self, contraction: Contraction, works: Sequence[PartitionWork], speed: Roofline) -> None:
        self.num_atoms = contraction.num_atoms
        self.window = Window(contraction)
        self.live = _Live(contraction)
        self.speed = speed
        self._flops = [0, *accumulate(work.flops for work in works)]
        self._bytes = [0, *accumulate(work.bytes for work in works)]
        self._kernels = [0, *accumulate(work.kernels for work in works)]
        self._launches = [0, *accumulate(work.launches for work in works)]

    def run(self, first: int, end: int, footprint: int) -> float:
        """Return the seconds of the run of a partition."""
        return self.speed.run(
            self._flops[end] - self._flops[first],
            self._bytes[end] - self._bytes[first],
            self._kernels[end] - self._kernels[first],
            self._launches[end] - self._launches[first],
            footprint,
        )

    def hop(self, first: int, end: int) -> float:
        """Return the seconds of the hop into a partition; 0.0 for the first one, which the caller feeds."""
        return self.speed.hop(self.live.received(first, end)) if first else 0.0

    def alone(self, atom: int) -> float:
        """Return the seconds of the run of one atom."""
        self.window.reset(atom)
        self.window.extend()
        return self.run(atom, atom + 1, self.window.footprint)

    def longest(self, boundaries: Sequence[int]) -> float:
        """Return the seconds of the longest run or hop of a plan."""
        return max(map(max, self._parts(boundaries)), default=0.0)

    def total(self, boundaries: Sequence[int]) -> float:
        """Return the sum of the seconds of all runs and hops of a plan."""
        return sum(map(sum, self._parts(boundaries)))

    def _parts(self, boundaries: Sequence[int]) -> Iterator[tuple[float, float]]:
        """Return the seconds of the run and of the hop of each partition."""
        for first, end in pairwise(boundaries):
            self.window.reset(first)
            for _ in range(first, end):
                self.window.extend()
            yield self.run(first, end, self.window.footprint), self.hop(first, end)

    def reaches(self, cap: float, limit: int) -> list[int]:
        """Return, for each start, the farthest end of a feasible partition under a cap on runs and hops.

        Where there is none, it is the start itself.
        """
        n, window = self.num_atoms, self.window
        reach = [n] * n
        window.reset(0)
        for end in range(1, n + 1):
            window.extend()
            while window.last - window.first > 1 and (
                window.footprint > limit or self.run(window.first, end, window.footprint) > cap
            ):
                reach[window.first] = end - 1
                window.shrink()
            if window.last - window.first == 1 and self.run(end - 1, end, window.footprint) > cap:
                return [0] * n
        if cap == _FINITE:
            return reach
        return [min(end, self._hop_reach(start, end, cap)) for start, end in enumerate(reach)]

    def _hop_reach(self, start: int, end: int, cap: float) -> int:
        if start == 0 or self.hop(start, end) <= cap:
            return end
        low, high = start, end  # a bisection over the ends at which something more arrives
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.hop(start, middle) <= cap else (low, middle)
        return low

    def walk(self, cap: float, most: int, limit: int) -> list[int] | None:
        """Return a plan of the fewest partitions that the cap allows; None if they are more than ``most``."""
        n, reach = self.num_atoms, self.reaches(cap, limit)
        starts: list[int] = []
        end = best = seen = 0
        while end < n:
            while seen <= end:  # all starts that this many partitions reach
                if reach[seen] > reach[best]:
                    best = seen
                seen += 1
            if reach[best] <= end or len(starts) == most:
                return None
            starts.append(best)
            end = reach[best]
        return [*starts, n]


class _Live:
    """The links of the contraction that cross each boundary, by the atom that touches them next."""

    def __init__(self, contraction: Contraction) -> None:
        n, inner = contraction.num_atoms, contraction.num_inner_links
        columns = (contraction.link_from, contraction.link_to, contraction.link_cut)
        begins: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        for source, target, size in zip(*(column[:inner].tolist() for column in columns), strict=True):
            if size:
                begins[source].append((target, size))
        self._next: list[list[int]] = []
        self._sums: list[list[int]] = []
        live: list[tuple[int, int]] = []
        for start in range(n):
            live = sorted(pair for pair in live if pair[0] >= start)
            distinct = live if len(live) <= _MOST_LIVE else [(start, sum(size for _, size in live))]
            self._next.append([target for target, _ in distinct])
            self._sums.append([0, *accumulate(size for _, size in distinct)])
            live += begins[start]

    def received(self, start: int, end: int) -> int:
        """Return the bytes that the partition [start, end) receives."""
        return self._sums[start][bisect_left(self._next[start], end)]

    def all(self, start: int) -> int:
        """Return the bytes that are live over the boundary before an atom."""
        return self._sums[start][-1]


def _least_sum(clock: _Clock, most: int, limit: int, cap: float, known: Sequence[int]) -> Fastest:
    """Return the plan with the least sum of runs and hops, none of which exceeds the cap.

    Args:
        known: the boundaries of a feasible plan; they are always among the positions that are looked at.
    """
    reach = clock.reaches(cap, limit)
    places = _places(clock, reach, known)
    costs = [_costs(clock, places, at, reach[start]) for at, start in enumerate(places[:-1])]
    sums = np.full(len(places), math.inf)
    sums[0] = 0.0
    came_from: list[npt.NDArray[np.int64]] = []
    total, count = math.inf, 0
    while len(came_from) < most and sums.min() < total:  # a longer plan goes on from one of these
        grown, origin = np.full(len(places), math.inf), np.zeros(len(places), dtype=np.int64)
        for at in np.flatnonzero(np.isfinite(sums[:-1])).tolist():
            run = slice(at + 1, at + 1 + len(costs[at]))
            found = sums[at] + costs[at]
            better = found < grown[run]
            grown[run][better] = found[better]
            origin[run][better] = at
        came_from.append(origin)
        sums = grown
        if sums[-1] < total:
            total, count = float(sums[-1]), len(came_from)
    ends = [len(places) - 1]
    for origin in reversed(came_from[:count]):
        ends.append(int(origin[ends[-1]]))
    return Fastest([places[at] for at in reversed(ends)], total)


def _places(clock: _Clock, reach: Sequence[int], known: Sequence[int]) -> list[int]:
    """Return the positions to place boundaries at, the first and the last included."""
    n = clock.num_atoms
    stride = -(-sum(end - start for start, end in enumerate(reach)) // MOST_RUNS)
    groups = (range(first, min(first + stride, n)) for first in range(0, n, max(1, stride)))
    found = range(n) if stride <= 1 else {min(group, key=clock.live.all) for group in groups}
    return sorted({0, n, *known, *found})


def _costs(clock: _Clock, places: Sequence[int], at: int, reach: int) -> npt.NDArray[np.float64]:
    """Return the seconds of the partitions from one position to each following one, up to its reach."""
    start, window = places[at], clock.window
    window.reset(start)
    costs = []
    for end in places[at + 1 : bisect_right(places, reach)]:
        while window.last < end:
            window.extend()
        costs.append(clock.run(start, end, window.footprint) + clock.hop(start, end))
    return np.array(costs)
