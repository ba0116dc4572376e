"""Boundaries for compiled code, whose footprints are exact only once the boundaries are known.

The planner works with what it can say before (`fusion.fuse` without starts). Where a partition turns out larger than
the budget, the planner is given an eighth less, a few times, and the plan that spills least is taken. None of this
proves that there is no better plan, so the certificate claims nothing.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from .certificate import Certificate
from .placing import NO_BUDGET, Placement, solve
from .problem import Problem
from .request import Request
from .window import interval

_ROUNDS = 6


def settle(problem: Problem, placement: Placement, request: Request) -> Placement:
    """A placement whose partitions are within the budget by their exact footprints, as far as that is found."""
    needed = placement.certificate.min_partitions
    short = bool(request.count) and needed > request.count and request.on_shortage == "balance"
    claims_nothing = Certificate(needed if short else min(1, needed), (), 0, ())
    placement = replace(placement, certificate=claims_nothing, tradeoffs=())
    one_size = len(set(request.budgets)) < 2 and request.budget is not None and placement.budget < NO_BUDGET
    if short or not one_size:
        return placement
    best, least = placement, _spill(problem, placement)
    target = placement.budget
    for _ in range(_ROUNDS):
        if least == 0:
            break
        target = target * 7 // 8
        boundaries = solve(problem.chain, target, request)
        if request.count and len(boundaries) - 1 > request.count and request.on_shortage != "wrap":
            break
        tried = replace(placement, boundaries=boundaries, slots=list(range(len(boundaries) - 1)))
        spill = _spill(problem, tried)
        if spill < least:
            best, least = tried, spill
    return best


def _spill(problem: Problem, placement: Placement) -> int:
    """The bytes beyond the budget of all partitions, by their exact footprints."""
    _, chain = problem.settled(placement.boundaries)
    places: list[int] = chain.atom_start[placement.boundaries].tolist()
    return sum(max(0, interval(chain, *part).total - placement.budget) for part in pairwise(places))
