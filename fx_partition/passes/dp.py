"""The exact planner over the linear order.

``dp`` minimises, in this order: the number of partitions, the largest partition, and the bytes that
partitions receive from one another. A set of atoms is feasible if its footprint is within the budget or it is
one single atom; an oversize atom (alone over the budget) does not count for the largest partition. How:

1. The fewest partitions k: one sweep of farthest reach (`greedy.py`).
2. The smallest maximum at k: bisection on bytes, with the sweep as probe. A sweep that fails rejected only
   intervals above its limit, and decides the same under any limit below the smallest of them: the next lower
   bound. One that succeeds shows that the largest partition that it made suffices: the next upper bound.
3. The fewest bytes at k and that maximum: the layered dynamic programme of `cut.py`.

The bisection starts from a bound below: a footprint is at most the sum of the footprints of the parts of its
interval, so k partitions that cover the whole hold on average at least a k-th of the whole's footprint.

Time O((n + e) log(budget)), memory O(n + e), for n atoms and e touches.
"""

from __future__ import annotations

import numpy as np

from .chain import Chain, IntArray
from .contraction import Contraction, contract, whole_footprint
from .cut import fewest_cut
from .greedy import Sweep, Sweeper, check_budget
from .window import Window


def dp(chain: Chain, budget: int, max_partitions: int | None = None) -> list[int]:
    """The best plan: boundaries as atom indices ``[0, ..., num_atoms]``.

    Among plans that are equal in all three measures, the last boundary is as far left as possible, then the
    one before it, and so on.

    Example: four atoms of 2 bytes that share nothing, budget 6: ``[0, 2, 4]``; ``greedy`` says ``[0, 3, 4]``.

    Args:
        chain: the planner's input.
        budget: bytes of one device.
        max_partitions: how many partitions there may be.

    Raises:
        ValueError: if ``budget`` is negative, or more than ``max_partitions`` partitions are needed.
    """
    check_budget(budget)
    contraction = contract(chain)
    sweeper = Sweeper(contraction)
    first = sweeper.run(budget)
    k = len(first.footprints)
    if max_partitions is not None and k > max_partitions:
        raise ValueError(
            f"{budget} bytes a partition need {k} partitions, more than max_partitions={max_partitions}"
        )
    best, maximum = smallest_maximum(
        sweeper, k, least_maximum(contraction, k, budget), first, first.largest(budget)
    )
    del sweeper  # its lists are as large as the window's
    return fewest_cut(contraction, best.boundaries, reach_back(contraction, maximum))


def balance(chain: Chain, num_partitions: int) -> list[int]:
    """The plan for a given number of partitions, whatever the budget: boundaries as atom indices.

    The largest partition is as small as ``num_partitions`` partitions allow, all partitions counted; then as
    few partitions as that maximum needs (fewer than ``num_partitions`` only where more would not make the
    largest smaller); then the fewest bytes received.

    Raises:
        ValueError: if ``num_partitions`` is less than 1.
    """
    contraction, best, maximum = _balanced(chain, num_partitions)
    return fewest_cut(contraction, best.boundaries, reach_back(contraction, maximum))


def smallest_budget(chain: Chain, num_partitions: int) -> int:
    """The least budget under which ``num_partitions`` partitions suffice and no atom is oversize, in bytes.

    Raises:
        ValueError: if ``num_partitions`` is less than 1.
    """
    return _balanced(chain, num_partitions)[2]


def _balanced(chain: Chain, num_partitions: int) -> tuple[Contraction, Sweep, int]:
    if num_partitions < 1:
        raise ValueError(f"num_partitions must be at least 1, not {num_partitions}")
    contraction = contract(chain)
    sweeper = Sweeper(contraction)
    whole = whole_footprint(contraction)
    low = least_maximum(contraction, num_partitions, whole)
    return contraction, *smallest_maximum(sweeper, num_partitions, low, sweeper.run(whole), whole)


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
    sweeper: Sweeper, num_partitions: int, low: int, best: Sweep, maximum: int
) -> tuple[Sweep, int]:
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


def reach_back(contraction: Contraction, limit: int) -> IntArray:
    """For each position the least start of a feasible partition that ends there (0 for position 0)."""
    window = Window(contraction)
    starts = [0]
    for _ in range(contraction.num_atoms):
        window.extend()
        while window.footprint > limit and window.last - window.first > 1:
            window.shrink()
        starts.append(window.first)
    return np.array(starts, dtype=np.int64)
