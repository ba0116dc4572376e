"""The exact planner over a linear order.

``dp`` minimises, in this order: the number of partitions, the largest partition, and the bytes that
partitions receive from one another; with a ``max_slack`` the bytes come before the largest partition. A set of atoms is
feasible if its footprint is within the budget or it is a single atom; an oversize atom (by itself over the budget) does
not count for the largest partition. The method:

1. The fewest partitions k: one pass of farthest reach (`greedy.py`).
2. The smallest maximum at k: bisection on bytes, with such a pass as probe. A pass that fails has rejected only
   intervals above its limit, and would fail in the same way under any limit below the smallest of them: that is the
   next lower bound. A pass that succeeds shows that its largest partition suffices: that is the next upper bound.
3. The fewest bytes at k and that maximum: the layered dynamic programme of `min_cut.py`. With slack: the fewest bytes
   at k and the largest maximum that is allowed, and then the smallest maximum at these bytes: among the plans that
   have them if these are few (`cut_ties.py`), else by bisection with the programme as probe.

The bisection of step 2 starts from a lower bound: a footprint is at most the sum of the footprints of the parts of its
interval, so k partitions that cover the whole have on average at least a k-th of the whole's footprint.

Time O((n + e) log(budget)), with slack O((n + e) log(n) log(budget)); memory O(n + e), for n atoms and e touches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from .boundary_ranges import Layers, layers
from .chain import Chain, IntArray
from .contraction import Contraction, contract, footprints, whole_footprint
from .cut_ties import smallest_of_ties
from .greedy import FarthestReach, FarthestReachSolver, check_budget
from .min_cut import CutTable


def dp(chain: Chain, budget: int, max_slack: float = 0.0) -> list[int]:
    """Return the best plan: boundaries as atom indices ``[0, ..., num_atoms]``.

    Of plans that are equal in all three measures, the result is one with few distinct partitions if the chain has an
    ``atom_key`` (`repeated_partitions`). Else its last boundary is as far left as possible, then the one before it, and
    so on.

    Example: four atoms of 2 bytes that share nothing, budget 6: ``[0, 2, 4]``; ``greedy`` says ``[0, 3, 4]``.

    Args:
        chain: the planner's input.
        budget: bytes of one device.
        max_slack: the share of the smallest possible maximum by which the largest partition may exceed it (within the
            budget) where that saves bytes received; ``math.inf``: any.

    Raises:
        ValueError: if ``budget`` or ``max_slack`` is negative.
    """
    check_budget(budget)
    check_slack(max_slack)
    solver = FarthestReachSolver(contract(chain))
    k, maximum = fewest_and_smallest(solver, budget)
    limit = slack_limit(maximum, budget, max_slack)
    return cheapest(solver.contraction, even(solver, k), maximum, limit, budget, chain.atom_key)[2]


def balance(chain: Chain, num_partitions: int) -> list[int]:
    """Return the best plan of at most ``num_partitions`` partitions, without a budget: boundaries as atom indices.

    The largest partition is as small as ``num_partitions`` partitions allow, all partitions counted; then the number
    of partitions is the fewest for that maximum (fewer than ``num_partitions`` only where more would not make the
    largest smaller); then the fewest bytes are received.

    Raises:
        ValueError: if ``num_partitions`` is less than 1.
    """
    solver, fewest, maximum = _balanced(chain, num_partitions)
    return cheapest(solver.contraction, even(solver, fewest), maximum, maximum, maximum, chain.atom_key)[2]


def exactly(chain: Chain, num_partitions: int) -> list[int]:
    """Return the best plan of exactly ``num_partitions`` partitions, none empty: boundaries as atom indices.

    There is no budget. The largest partition is as small as possible; then the fewest bytes are received.

    Example: atoms of 8, 2, 2 and 2 bytes that share nothing, three partitions: ``[0, 1, 2, 4]``; ``balance`` needs two.

    Raises:
        ValueError: if ``num_partitions`` is less than 1, or there are fewer atoms.
    """
    if num_partitions > chain.num_atoms:
        raise ValueError(f"{chain.num_atoms} atoms do not make {num_partitions} partitions")
    solver, _, maximum = _balanced(chain, num_partitions)
    return cheapest(solver.contraction, even(solver, num_partitions), maximum, maximum, maximum, chain.atom_key)[2]


def smallest_budget(chain: Chain, num_partitions: int) -> int:
    """Return the smallest budget in bytes under which ``num_partitions`` suffice and no atom is oversize.

    Raises:
        ValueError: if ``num_partitions`` is less than 1.
    """
    return _balanced(chain, num_partitions)[2]


def check_slack(max_slack: float) -> None:
    """Raise a ValueError if ``max_slack`` is negative."""
    if not max_slack >= 0:
        raise ValueError(f"max_slack must be a share of the smallest maximum, 0 or more, not {max_slack}")


def slack_limit(maximum: int, budget: int, max_slack: float) -> int:
    """Return the largest size that a partition may have: ``maximum`` plus the slack, within the budget."""
    if math.isinf(max_slack):
        return budget
    # Not in floating point, which rounds large numbers of bytes.
    return min(budget, math.floor(maximum * (1 + Fraction(max_slack))))


def fewest_and_smallest(solver: FarthestReachSolver, budget: int) -> tuple[int, int]:
    """Return the fewest partitions within ``budget``, and the smallest maximum of plans with that number."""
    first = solver.run(budget)
    k = len(first.footprints)
    low = least_maximum(solver.contraction, k, budget)
    return k, smallest_maximum(solver, k, low, first, first.largest(budget))[1]


def cheapest(
    contraction: Contraction,
    under: Callable[[int], Layers | None],
    low: int,
    limit: int,
    oversize: int,
    keys: IntArray | None = None,
) -> tuple[int, int, list[int]]:
    """Return the plan under ``limit`` with the fewest bytes received, and of these one with the smallest maximum.

    Args:
        contraction: the chain.
        under: returns the layers of the plans under a limit, None if there are no plans.
        low: a lower bound of the maximum of all these plans.
        limit: the largest size that a partition may have.
        oversize: an atom above it may be a partition by itself, which does not count for the maximum.
        keys: the atoms' keys, to choose among equal plans (`repeated_partitions`); not used where the maximum is found
            by bisection, whose last table may contain plans of a larger maximum.

    Returns:
        The bytes received, the maximum and the boundaries.
    """
    layers_under = under(limit)
    assert layers_under is not None
    table = CutTable(contraction, layers_under)
    if low >= limit:
        return table.cut, limit, table.boundaries(keys)
    return table.cut, *smallest_of_cheapest(contraction, under, table, low, oversize, keys)


def smallest_of_cheapest(
    contraction: Contraction,
    under: Callable[[int], Layers | None],
    table: CutTable,
    low: int,
    oversize: int,
    keys: IntArray | None = None,
) -> tuple[int, list[int]]:
    """Return the maximum and the boundaries as `cheapest` does, for the plans of a solved table."""
    tied = smallest_of_ties(contraction, table, oversize, keys)
    if tied is not None:
        return tied
    best = table.boundaries()
    high = largest_partition(contraction, best, oversize)
    while low < high:
        middle = (low + high) // 2
        layers_under = under(middle)
        probe = CutTable(contraction, layers_under) if layers_under else None
        if probe is not None and probe.cut == table.cut:
            best = probe.boundaries()
            high = largest_partition(contraction, best, oversize)
        else:
            low = middle + 1
    return high, best


def even(solver: FarthestReachSolver, num_partitions: int) -> Callable[[int], Layers | None]:
    """Return, for `cheapest`, the layers of plans of exactly ``num_partitions`` partitions, none empty, by limit."""
    return lambda limit: layers(solver.reach_back(limit), num_partitions)


def largest_partition(contraction: Contraction, boundaries: list[int], oversize: int) -> int:
    """Return the bytes of the largest partition of a plan, without partitions of one atom above ``oversize``."""
    distinct = np.unique(boundaries)  # partitions may be empty
    if len(distinct) < 2:
        return 0
    sizes = footprints(contraction, distinct.tolist())
    return int(sizes[(sizes <= oversize) | (np.diff(distinct) > 1)].max(initial=0))


def _balanced(chain: Chain, num_partitions: int) -> tuple[FarthestReachSolver, int, int]:
    """Return the solver, the fewest partitions with the smallest maximum, and that maximum."""
    if num_partitions < 1:
        raise ValueError(f"num_partitions must be at least 1, not {num_partitions}")
    contraction = contract(chain)
    solver = FarthestReachSolver(contraction)
    whole = whole_footprint(contraction)
    low = least_maximum(contraction, num_partitions, whole)
    best, maximum = smallest_maximum(solver, num_partitions, low, solver.run(whole), whole)
    return solver, len(best.footprints), maximum


def least_maximum(contraction: Contraction, num_partitions: int, budget: int) -> int:
    """Return a lower bound on the largest of ``num_partitions`` partitions, oversize atoms left out."""
    alone = contraction.alone
    oversize = alone > budget
    largest_atom = int(alone[~oversize].max(initial=0))
    others = num_partitions - int(oversize.sum())
    if others <= 0:
        return largest_atom
    return max(largest_atom, -((int(alone[oversize].sum()) - whole_footprint(contraction)) // others))


def smallest_maximum(
    solver: FarthestReachSolver, num_partitions: int, low: int, best: FarthestReach, maximum: int
) -> tuple[FarthestReach, int]:
    """Return the farthest reach under the smallest limit for ``num_partitions`` partitions at most, and that limit.

    Args:
        solver: the chain's.
        num_partitions: the most partitions that there may be.
        low: a lower bound of the limit, at least the largest atom that is not oversize.
        best: a farthest reach of at most ``num_partitions`` partitions.
        maximum: its largest partition that is not an oversize atom.
    """
    while low < maximum:
        middle = (low + maximum) // 2
        reach = solver.run(middle, most=num_partitions)
        if len(reach.rejected) < num_partitions:
            best, maximum = reach, reach.largest(middle)
        else:  # up to the smallest of the rejected intervals every limit fails in the same way
            low = min(reach.rejected)
    return best, maximum
