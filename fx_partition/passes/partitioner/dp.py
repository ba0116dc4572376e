"""The exact planner over the linear order.

``dp`` minimises, in this order: the number of partitions, the largest partition, and the bytes that
partitions receive from one another; with a ``max_slack`` the bytes come before the largest partition. A set of atoms is
feasible if its footprint is within the budget or it is one single atom; an oversize atom (alone over the budget) does
not count for the largest partition. How:

1. The fewest partitions k: one sweep of farthest reach (`greedy.py`).
2. The smallest maximum at k: bisection on bytes, with the sweep as probe. A sweep that fails rejected only
   intervals above its limit, and decides the same under any limit below the smallest of them: the next lower
   bound. One that succeeds shows that the largest partition that it made suffices: the next upper bound.
3. The fewest bytes at k and that maximum: the layered dynamic programme of `min_cut.py`. With slack: at k and the
   largest maximum that is allowed; then the smallest maximum at these bytes: among the few plans that have them
   (`cut_ties.py`), and where these are many, by bisection with the programme as probe.

The bisection of step 2 starts from a bound below: a footprint is at most the sum of the footprints of the parts of its
interval, so k partitions that cover the whole hold on average at least a k-th of the whole's footprint.

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
    """The best plan: boundaries as atom indices ``[0, ..., num_atoms]``.

    Among plans that are equal in all three measures, one of few distinct partitions where the chain has
    ``atom_key`` (`repeated_partitions`); else the last boundary is as far left as possible, then the one before it, and
    so on.

    Example: four atoms of 2 bytes that share nothing, budget 6: ``[0, 2, 4]``; ``greedy`` says ``[0, 3, 4]``.

    Args:
        chain: the planner's input.
        budget: bytes of one device.
        max_slack: by what share of the smallest possible maximum the largest partition may exceed it (and stay within
            the budget) where that saves bytes received; ``math.inf``: by anything.

    Raises:
        ValueError: if ``budget`` or ``max_slack`` is negative.
    """
    check_budget(budget)
    check_slack(max_slack)
    sweeper = FarthestReachSolver(contract(chain))
    k, maximum = fewest_and_smallest(sweeper, budget)
    limit = slack_limit(maximum, budget, max_slack)
    return cheapest(sweeper.contraction, even(sweeper, k), maximum, limit, budget, chain.atom_key)[2]


def balance(chain: Chain, num_partitions: int) -> list[int]:
    """The plan for a given number of partitions, whatever the budget: boundaries as atom indices.

    The largest partition is as small as ``num_partitions`` partitions allow, all partitions counted; then as
    few partitions as that maximum needs (fewer than ``num_partitions`` only where more would not make the
    largest smaller); then the fewest bytes received.

    Raises:
        ValueError: if ``num_partitions`` is less than 1.
    """
    sweeper, fewest, maximum = _balanced(chain, num_partitions)
    return cheapest(sweeper.contraction, even(sweeper, fewest), maximum, maximum, maximum, chain.atom_key)[2]


def exactly(chain: Chain, num_partitions: int) -> list[int]:
    """The plan of exactly so many partitions, none empty, whatever the budget: boundaries as atom indices.

    The largest partition is as small as so many allow, all partitions counted; then the fewest bytes are received.

    Example: atoms of 8, 2, 2 and 2 bytes that share nothing, three partitions: ``[0, 1, 2, 4]``; ``balance`` needs two.

    Raises:
        ValueError: if ``num_partitions`` is less than 1, or there are fewer atoms.
    """
    if num_partitions > chain.num_atoms:
        raise ValueError(f"{chain.num_atoms} atoms do not make {num_partitions} partitions")
    sweeper, _, maximum = _balanced(chain, num_partitions)
    return cheapest(sweeper.contraction, even(sweeper, num_partitions), maximum, maximum, maximum, chain.atom_key)[2]


def smallest_budget(chain: Chain, num_partitions: int) -> int:
    """The least budget under which ``num_partitions`` partitions suffice and no atom is oversize, in bytes.

    Raises:
        ValueError: if ``num_partitions`` is less than 1.
    """
    return _balanced(chain, num_partitions)[2]


def check_slack(max_slack: float) -> None:
    if not max_slack >= 0:
        raise ValueError(f"max_slack is a share of the smallest maximum, 0 or more, not {max_slack}")


def slack_limit(maximum: int, budget: int, max_slack: float) -> int:
    """The largest that a partition may be: ``maximum`` and the slack, within the budget."""
    if math.isinf(max_slack):
        return budget
    # Not in floating point, which rounds large numbers of bytes.
    return min(budget, math.floor(maximum * (1 + Fraction(max_slack))))


def fewest_and_smallest(sweeper: FarthestReachSolver, budget: int) -> tuple[int, int]:
    """The fewest partitions within ``budget``, and the smallest maximum of plans with so many."""
    first = sweeper.run(budget)
    k = len(first.footprints)
    low = least_maximum(sweeper.contraction, k, budget)
    return k, smallest_maximum(sweeper, k, low, first, first.largest(budget))[1]


def cheapest(
    contraction: Contraction,
    under: Callable[[int], Layers | None],
    low: int,
    limit: int,
    oversize: int,
    keys: IntArray | None = None,
) -> tuple[int, int, list[int]]:
    """Of the plans under ``limit`` with the fewest bytes received one with the smallest maximum: the bytes, the maximum
    and the boundaries.

    Args:
        contraction: the chain.
        under: the layers of the plans under a limit, None if there are no plans.
        low: a lower bound of the maximum of all these plans.
        limit: the largest that a partition may be.
        oversize: an atom above it may be alone, and does not count for the maximum.
        keys: of the atoms, to choose among equal plans by (`repeated_partitions`); not used where the maximum is found
            by bisection, whose last table may hold plans of a larger maximum.
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
    """As `cheapest`, of the plans of a table that is solved: the maximum and the boundaries."""
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


def even(sweeper: FarthestReachSolver, num_partitions: int) -> Callable[[int], Layers | None]:
    """For `cheapest`: the layers of plans of exactly ``num_partitions`` partitions, none empty."""
    return lambda limit: layers(sweeper.reach_back(limit), num_partitions)


def largest_partition(contraction: Contraction, boundaries: list[int], oversize: int) -> int:
    """The largest partition of a plan in bytes, atoms above ``oversize`` on their own left out."""
    distinct = np.unique(boundaries)  # partitions may be empty
    if len(distinct) < 2:
        return 0
    sizes = footprints(contraction, distinct.tolist())
    return int(sizes[(sizes <= oversize) | (np.diff(distinct) > 1)].max(initial=0))


def _balanced(chain: Chain, num_partitions: int) -> tuple[FarthestReachSolver, int, int]:
    if num_partitions < 1:
        raise ValueError(f"num_partitions must be at least 1, not {num_partitions}")
    contraction = contract(chain)
    sweeper = FarthestReachSolver(contraction)
    whole = whole_footprint(contraction)
    low = least_maximum(contraction, num_partitions, whole)
    best, maximum = smallest_maximum(sweeper, num_partitions, low, sweeper.run(whole), whole)
    return sweeper, len(best.footprints), maximum


def least_maximum(contraction: Contraction, num_partitions: int, budget: int) -> int:
    """A lower bound on the largest of ``num_partitions`` partitions, oversize atoms left out."""
    alone = contraction.alone
    oversize = alone > budget
    largest_atom = int(alone[~oversize].max(initial=0))
    others = num_partitions - int(oversize.sum())
    if others <= 0:
        return largest_atom
    return max(largest_atom, -((int(alone[oversize].sum()) - whole_footprint(contraction)) // others))


def smallest_maximum(
    sweeper: FarthestReachSolver, num_partitions: int, low: int, best: FarthestReach, maximum: int
) -> tuple[FarthestReach, int]:
    """The least limit under which at most ``num_partitions`` partitions suffice, and the sweep under it.

    Args:
        sweeper: of the chain.
        num_partitions: how many partitions there may be.
        low: a lower bound of the limit, at least the largest atom that is not oversize.
        best: a sweep that needs at most ``num_partitions`` partitions.
        maximum: its largest partition that is not an oversize atom.
    """
    while low < maximum:
        middle = (low + maximum) // 2
        sweep = sweeper.run(middle, most=num_partitions)
        if len(sweep.rejected) < num_partitions:
            best, maximum = sweep, sweep.largest(middle)
        else:
            low = min(sweep.rejected)
    return best, maximum
