"""Place boundaries where each device may have some of the atoms only, as it holds the weights of these.

Terms
-----
run
    The atoms of one device, behind those of the device before it in a given order; a run may be empty, and then the
    device is left out.
allowed
    For each device and atom whether the device may have the atom.

A run is *feasible* if all its atoms are allowed and its bytes are within the device's limit; an atom larger than all
devices may be a run by itself. Each part of a feasible run is feasible, so the positions of a boundary are one range
(`boundary_ranges`), and the planners of `mixed_devices` need only other ranges: the start of a run lies behind the last
atom that is not allowed.

Example: atoms of 2 bytes, four of them; the first device may have 0, 1 and 2, the second 3 alone: ``[0, 3, 4]``, where
`mixed_devices.spread` has ``[0, 2, 4]``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .boundary_ranges import Layers
from .chain import Chain, IntArray
from .contraction import contract, whole_footprint
from .dp import cheapest, check_slack, largest_partition, slack_limit
from .greedy import FarthestReachSolver, check_budget
from .min_cut import CutTable

Allowed = Sequence[npt.NDArray[np.bool_]]


def spread_allowed(
    chain: Chain, budgets: Sequence[int], allowed: Allowed, max_slack: float = 0.0
) -> list[int] | None:
    """Return the best plan within the budgets: ``boundaries[i] .. boundaries[i + 1]`` are the atoms of device i.

    It uses as few devices from the front of the list as possible; then the largest run is as small as possible; then
    the fewest bytes are received (`dp.py` says how slack changes that).

    Args:
        chain: the planner's input.
        budgets: bytes of each device.
        allowed: for each device whether it may have each atom, ``(num_atoms,)``.
        max_slack: as for `dp.dp`.

    Returns:
        None if there is no such plan.

    Raises:
        ValueError: if a budget or ``max_slack`` is negative.
    """
    check_slack(max_slack)
    for budget in budgets:
        check_budget(budget)
    contraction = contract(chain)
    solver = FarthestReachSolver(contraction)
    starts, widest = _starts(allowed), max(budgets)
    first = _layers(solver, budgets, starts, widest)
    if first is None:
        return None
    count = first.high.index(chain.num_atoms)

    def under(limit: int) -> Layers | None:
        return _layers(solver, [min(limit, budget) for budget in budgets[:count]], starts, widest)

    low, high = 0, largest_partition(contraction, first.high[: count + 1], widest)
    while low < high:
        middle = (low + high) // 2
        if (found := under(middle)) is not None:
            high = largest_partition(contraction, found.high, widest)
        else:
            low = middle + 1
    return cheapest(contraction, under, high, slack_limit(high, widest, max_slack), widest)[2]


def overfill_allowed(chain: Chain, budgets: Sequence[int], allowed: Allowed) -> list[int] | None:
    """Return the best plan where devices may exceed their budgets; boundaries as for `spread_allowed`.

    The largest excess of a device over its budget is as small as possible; then the fewest bytes are received.

    Returns:
        None if some atoms can be on no device, whatever it holds.
    """
    contraction = contract(chain)
    solver, starts = FarthestReachSolver(contraction), _starts(allowed)

    def over(excess: int) -> Layers | None:
        return _layers(solver, [budget + excess for budget in budgets], starts, sys.maxsize)

    low, high = 0, whole_footprint(contraction)
    best = over(high)
    if best is None:
        return None
    while low < high:
        middle = (low + high) // 2
        if (found := over(middle)) is not None:
            best, high = found, middle
        else:
            low = middle + 1
    return CutTable(contraction, best).boundaries()


def _starts(allowed: Allowed) -> list[IntArray]:
    """Return, for each device and position, the smallest start of a run to this position whose atoms are allowed."""
    barred = [np.where(row, 0, np.arange(1, len(row) + 1)) for row in allowed]
    return [np.concatenate([np.zeros(1, dtype=np.int64), np.maximum.accumulate(row)]) for row in barred]


def _layers(
    solver: FarthestReachSolver, limits: Sequence[int], starts: Sequence[IntArray], largest: int
) -> Layers | None:
    """Return the layers of plans with a run for each limit; None if there are no plans.

    Args:
        largest: an atom above it may be a run by itself.
    """
    end = solver.contraction.num_atoms
    back = {limit: solver.reach_back(limit, largest) for limit in set(limits)}
    reach = [np.maximum(back[limit], start) for limit, start in zip(limits, starts, strict=False)]
    high = [0]
    for smallest in reach:
        high.append(int(np.searchsorted(smallest, high[-1], side="right")) - 1)
    if high[-1] < end:
        return None
    low = [end]
    for smallest in reversed(reach):
        low.append(int(smallest[low[-1]]))
    low.reverse()
    return Layers(low, high, reach, empty=True)
