"""Refine boundaries for compiled code, whose footprints are exact only once the boundaries are known.

The planner first works with estimates (`fused_footprint.fuse` without starts). Where a partition turns out larger than
the budget, the planner runs again with an eighth less, a few times, and the result is the plan that spills least. This
does not prove that there is no better plan, so the certificate claims nothing.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from ..footprint.graph_memory import GraphMemory
from ..partitioner.certificate import Certificate
from ..partitioner.chain import Chain
from ..partitioner.interval_footprint import interval
from .placement import Placement, solve
from .problem import Problem
from .request import NO_BUDGET, Request

_ROUNDS = 6


class RefinedPlacement(NamedTuple):
    """A placement, with the memory and the chain that describe its partitions exactly."""

    placement: Placement
    memory: GraphMemory
    chain: Chain

    @property
    def spill(self) -> int:
        """The bytes beyond the budget, over all partitions."""
        budget = self.placement.budget
        places: list[int] = self.chain.atom_start[self.placement.boundaries].tolist()
        return sum(max(0, interval(self.chain, *part).total - budget) for part in pairwise(places))


def refine(problem: Problem, placement: Placement, request: Request) -> RefinedPlacement:
    """Return a placement whose exact footprints are within the budget, or the one found that spills least.

    For eager code the placement stays as it is.
    """

    def exactly(found: Placement) -> RefinedPlacement:
        return RefinedPlacement(found, *problem.refined(found.boundaries))

    if not problem.fused:
        return exactly(placement)
    needed = placement.certificate.min_partitions
    placement = replace(placement, certificate=unproved(needed, request), tradeoffs=())
    best = exactly(placement)
    short = _is_short(needed, request)
    if short or request.exactly or request.budgets or request.budget is None or placement.budget >= NO_BUDGET:
        return best
    least = best.spill
    target = placement.budget
    for _ in range(_ROUNDS):
        if least == 0:
            break
        target = target * 7 // 8
        boundaries = solve(problem.chain, target, request)
        if request.count and len(boundaries) - 1 > request.count and request.on_shortage != "wrap":
            break
        tried = exactly(replace(placement, boundaries=boundaries, slots=list(range(len(boundaries) - 1))))
        if tried.spill < least:
            best, least = tried, tried.spill
    return best


def unproved(needed: int, request: Request) -> Certificate:
    """Return the certificate of a plan of which nothing is proved; where devices are too few, it says how many.

    Args:
        needed: the partitions that the budget asks for, by the planner's own figures.
    """
    return Certificate(needed if _is_short(needed, request) else min(1, needed), (), 0, ())


def _is_short(needed: int, request: Request) -> bool:
    return bool(request.count) and needed > request.count and request.on_shortage == "balance"
