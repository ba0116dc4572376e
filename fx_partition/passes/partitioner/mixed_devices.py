"""Plan for devices of different sizes, in a given order.

Each device holds a run of atoms, behind the run of the device before it. A run may be empty: then the device is left
out, because the next atom does not fit it, or because that is better. An atom that fits none of the devices is
*oversize* and may be alone on any of them.

A plan uses as few devices from the front of the list as possible; on these, the largest partition is as small as
possible; then as few bytes as possible are received (`dp.py` says how slack changes that). Farthest reach is exact for
the number of devices, as for equal devices (`greedy.py`): the more atoms the first devices hold, the fewer are left.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .boundary_ranges import Layers, uneven_layers
from .certificate import Witness
from .chain import Chain
from .contraction import Contraction, contract, whole_footprint
from .dp import cheapest, check_slack, largest_partition, slack_limit
from .greedy import FarthestReachSolver, check_budget
from .min_cut import CutTable
from .sliding_window import Window


def spread(chain: Chain, budgets: Sequence[int], max_slack: float = 0.0) -> list[int] | None:
    """Return the best plan: ``boundaries[i] .. boundaries[i + 1]`` are the atoms of device i.

    It is None if the devices do not hold the chain.

    Example: three atoms of 2 bytes that share nothing, budgets 1, 4 and 4: ``[0, 0, 1, 3]``, the first device is left
    out. With budgets 4, 4 and 4: ``[0, 1, 3]``, the third is not needed.

    Raises:
        ValueError: if a budget or ``max_slack`` is negative.
    """
    check_slack(max_slack)
    for budget in budgets:
        check_budget(budget)
    contraction = contract(chain)
    widest = max(budgets)
    first, _ = farthest(contraction, budgets, widest)
    if first[-1] < chain.num_atoms:
        return None
    used = budgets[: len(first) - 1]
    solver = FarthestReachSolver(contraction)
    smallest = smallest_spread(contraction, used, widest, largest_partition(contraction, first, widest))

    def under(limit: int) -> Layers | None:
        return _layers(solver, [min(limit, budget) for budget in used], widest)

    return cheapest(contraction, under, smallest, slack_limit(smallest, widest, max_slack), widest)[2]


def smallest_spread(contraction: Contraction, used: Sequence[int], widest: int, high: int) -> int:
    """Return the smallest maximum over the devices ``used``, by bisection from ``high``, which is possible."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        found, _ = farthest(contraction, [min(middle, budget) for budget in used], widest)
        if found[-1] == contraction.num_atoms:
            high = largest_partition(contraction, found, widest)
        else:
            low = middle + 1
    return high


def overfill(chain: Chain, budgets: Sequence[int]) -> list[int]:
    """Return the best plan for devices that do not hold the chain; boundaries as for `spread`.

    The largest excess of a device over its budget is as small as possible; then as few bytes as possible are received.
    """
    # No atom counts as oversize here: its excess counts like any other.
    contraction = contract(chain)
    low, high = 0, whole_footprint(contraction)
    while low < high:
        middle = (low + high) // 2
        found, _ = farthest(contraction, [budget + middle for budget in budgets], sys.maxsize)
        low, high = (low, middle) if found[-1] == chain.num_atoms else (middle + 1, high)
    found_layers = _layers(FarthestReachSolver(contraction), [budget + high for budget in budgets], sys.maxsize)
    assert found_layers is not None
    return CutTable(contraction, found_layers).boundaries()


def farthest(contraction: Contraction, budgets: Sequence[int], widest: int) -> tuple[list[int], list[Witness]]:
    """Return the boundaries of farthest reach up to the device that reaches the end, and a witness for each other one.

    Args:
        contraction: the chain.
        budgets: bytes of each device.
        widest: an atom above it is oversize.

    Returns:
        The boundaries, and a witness (first, rejected, bytes) for each device that does not reach the end: its atoms
        first .. rejected, both included, have more bytes than its budget.
    """
    window = Window(contraction)
    boundaries = [0]
    witnesses: list[Witness] = []
    for budget in budgets:
        start = boundaries[-1]
        if start == contraction.num_atoms:
            break
        window.reset(start)
        end = start
        while window.last < contraction.num_atoms:
            window.extend()
            oversize = window.last - start == 1 and window.footprint > widest
            if window.footprint > budget and not oversize:
                witnesses.append((start, window.last - 1, window.footprint))
                break
            end = window.last
        boundaries.append(end)
    return boundaries, witnesses


def _layers(solver: FarthestReachSolver, limits: Sequence[int], widest: int) -> Layers | None:
    boundaries, _ = farthest(solver.contraction, limits, widest)
    if boundaries[-1] < solver.contraction.num_atoms:
        return None
    boundaries += boundaries[-1:] * (len(limits) + 1 - len(boundaries))
    return uneven_layers(solver, boundaries, limits, widest)
