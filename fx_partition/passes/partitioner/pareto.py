"""What a few partitions more, or a larger maximum, would save.

For each number of partitions K from the fewest k on there is a front of plans: a smaller maximum costs more bytes
received. Its two ends are found here: the smallest maximum (and then the fewest bytes), and the fewest bytes within
the budget (and then the smallest maximum). More partitions can pay in either: they are smaller, and there are more
ways to avoid an expensive boundary.
"""

from __future__ import annotations

from typing import NamedTuple

from .chain import Chain
from .contraction import contract
from .dp import cheapest, even, least_maximum, smallest_maximum
from .greedy import FarthestReachSolver, check_budget


class Tradeoff(NamedTuple):
    """The measures of one plan; an oversize atom on its own does not count for the maximum."""

    num_partitions: int
    max_bytes: int
    cut_bytes: int

    def is_as_good_as(self, other: Tradeoff) -> bool:
        """Whether ``other`` has nothing that this does not have as well."""
        return all(mine <= its for mine, its in zip(self, other, strict=True))


def pareto(chain: Chain, budget: int, more: int = 2) -> list[Tradeoff]:
    """The ends of the fronts for k .. k + ``more`` partitions, without those that another row beats or equals.

    Example: four atoms of 2 bytes that share nothing, budget 6: 2 partitions of at most 4 bytes, or 4 of 2
    (``more=2``); with 3 the maximum is 4 again, so there is no such row.

    Raises:
        ValueError: if ``budget`` is negative.
    """
    check_budget(budget)
    contraction = contract(chain)
    sweeper = FarthestReachSolver(contraction)
    first = sweeper.run(budget)
    fewest = len(first.footprints)
    rows: list[Tradeoff] = []
    for count in range(fewest, min(fewest + more, chain.num_atoms) + 1):
        low = least_maximum(contraction, count, budget)
        _, smallest = smallest_maximum(sweeper, count, low, first, first.largest(budget))
        for limit in (smallest, budget):
            cut, largest, _ = cheapest(contraction, even(contraction, count), smallest, limit, budget)
            row = Tradeoff(count, largest, cut)
            if not any(other.is_as_good_as(row) for other in rows):
                rows.append(row)
    return rows
