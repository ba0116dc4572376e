"""Find what a few more partitions, or a larger maximum, would save.

For each number of partitions K from the fewest k on there is a front of plans: a smaller maximum costs more bytes
received. This module finds its two ends: the smallest maximum (and then the fewest bytes), and the fewest bytes within
the budget (and then the smallest maximum). More partitions can improve both: they are smaller, and there are more ways
to avoid an expensive boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .chain import Chain
from .contraction import contract
from .dp import even, least_maximum, smallest_maximum, smallest_of_cheapest
from .greedy import FarthestReachSolver, check_budget
from .min_cut import CutTable


class Tradeoff(NamedTuple):
    """The measures of one plan; a partition of one oversize atom does not count for the maximum."""

    num_partitions: int
    max_bytes: int
    cut_bytes: int

    def is_as_good_as(self, other: Tradeoff) -> bool:
        """Return whether this plan is at least as good as ``other`` in every measure."""
        return all(mine <= its for mine, its in zip(self, other, strict=True))


def pareto(chain: Chain, budget: int, more: int = 2) -> list[Tradeoff]:
    """Return the ends of the fronts for k .. k + ``more`` partitions, without rows that another row beats or equals.

    Example: four atoms of 2 bytes that share nothing, budget 6: 2 partitions of at most 4 bytes, or 4 of 2
    (``more=2``); with 3 the maximum is 4 again, so there is no such row.

    Raises:
        ValueError: if ``budget`` is negative.
    """
    check_budget(budget)
    solver = FarthestReachSolver(contract(chain))
    first = solver.run(budget)
    fewest = len(first.footprints)
    rows: list[Tradeoff] = []
    for count in range(fewest, min(fewest + more, chain.num_atoms) + 1):
        low = least_maximum(solver.contraction, count, budget)
        _, smallest = smallest_maximum(solver, count, low, first, first.largest(budget))
        for row in _ends(solver, count, smallest, budget, rows):
            if not any(other.is_as_good_as(row) for other in rows):
                rows.append(row)
    return rows


def _ends(
    solver: FarthestReachSolver, count: int, smallest: int, budget: int, rows: list[Tradeoff]
) -> Iterator[Tradeoff]:
    """Yield both ends of one front; not the second where one of ``rows`` or the first end is as good.

    Finding the maximum of the second end takes a programme for each step of a bisection. So it comes last, and only
    searches below the maximum of other rows that receive as few bytes.

    Args:
        solver: the chain's.
        count: the number of partitions.
        smallest: the smallest maximum of ``count`` partitions.
        budget: bytes of one device.
        rows: the rows of fewer partitions.
    """
    contraction, under = solver.contraction, even(solver, count)

    def solve(limit: int) -> CutTable:
        layers = under(limit)
        assert layers is not None
        return CutTable(contraction, layers)

    first = Tradeoff(count, smallest, solve(smallest).cut)
    yield first
    table = solve(budget)
    beaten = min((row.max_bytes for row in (first, *rows) if row.cut_bytes <= table.cut), default=budget + 1)
    if beaten <= smallest:
        return
    if beaten <= budget:
        below = solve(beaten - 1)
        if below.cut > table.cut:
            return
        table = below
    yield Tradeoff(count, smallest_of_cheapest(contraction, under, table, smallest + 1, budget)[0], table.cut)
