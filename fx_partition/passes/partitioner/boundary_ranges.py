"""Find where the boundaries of a plan with a given number of partitions can be.

Terms
-----
limit
    The largest footprint that a partition may have; a single atom above the limit may be a partition too.
layer
    The positions (between atoms) at which boundary l can be, l = 0 .. K for K partitions: those that l partitions
    reach from the left and from which the other K - l reach the end. Since a footprint never falls when an interval
    grows, they are one range ``low[l] .. high[l]``: farthest reach from the left ends at ``high``, and from the right
    at ``low``.
reach
    For each position p the smallest start of a partition that may end at p.

Where K is the fewest partitions under the limit, no two layers overlap: a position in two of them would give a plan of
K - 1. With s partitions more, a position is in at most s + 1 layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .chain import IntArray
from .greedy import FarthestReachSolver


@dataclass(frozen=True)
class Layers:
    """The positions of each boundary; the module's docstring defines the terms.

    Attributes:
        low, high: ``K + 1`` positions, ascending; layer l is ``low[l] .. high[l]``, both included.
        reach: for each partition l (between the boundaries l and l + 1) its smallest starts, ``(num_atoms + 1,)``.
        empty: whether a partition may be empty: its device is left out.
    """

    low: list[int]
    high: list[int]
    reach: Sequence[IntArray]
    empty: bool = False


def layers(reach: IntArray, num_partitions: int) -> Layers | None:
    """Return the layers of plans of exactly ``num_partitions`` partitions, none empty, under one limit.

    Args:
        reach: the smallest starts under the limit.
        num_partitions: at most the number of atoms.

    Returns:
        None if the limit needs more partitions.
    """
    n = len(reach) - 1
    assert num_partitions <= n
    ends = [0]
    for _ in range(num_partitions):
        ends.append(int(np.searchsorted(reach, ends[-1], side="right")) - 1)
    if ends[-1] < n:
        return None
    high = [min(end, n - num_partitions + index) for index, end in enumerate(ends)]
    low = [n]
    for index in range(num_partitions - 1, -1, -1):
        low.append(max(int(reach[low[-1]]), index))
    low.reverse()
    return Layers(low, high, [reach] * num_partitions)


def uneven_layers(solver: FarthestReachSolver, farthest: list[int], limits: Sequence[int], largest: int) -> Layers:
    """Return the layers of plans with one partition for each limit, in order, each of which may be empty.

    Args:
        solver: the chain's.
        farthest: the boundaries of farthest reach under the limits, ``len(limits) + 1`` of them, the last at the end.
        limits: bytes for each partition.
        largest: an atom above it fits no device, and may be a partition by itself on any of them.
    """
    starts = {limit: solver.reach_back(limit, largest) for limit in set(limits)}
    reach = [starts[limit] for limit in limits]
    low = [farthest[-1]]
    for starts_of in reversed(reach):
        low.append(min(low[-1], int(starts_of[low[-1]])))
    low.reverse()
    return Layers(low, farthest, reach, empty=True)
