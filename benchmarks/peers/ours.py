"""Plan with fx_partition's two algorithms, once the memory is analysed: atoms, chain, boundaries, certificate."""

from __future__ import annotations

from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import Request

from .case import Case, Planned, timed


def plan(case: Case, budget: int, algorithm: str = "dp", order: str = "search") -> Planned:
    """Return a plan, whose figures must equal the scorer's byte for byte.

    Raises:
        AssertionError: they differ.
    """
    request = Request.check(budget, algorithm=algorithm, order=order)
    made, seconds = timed(lambda memory: make_plan(case.captured, memory, request), lambda: case.memory)
    assignment = assignment_of(made)
    score = case.score(assignment)
    assert score.footprints == tuple(p.total_bytes for p in made.partitions), "footprints differ from the scorer's"
    assert score.cut_bytes == made.cut_bytes and not score.back_edges, "the cut differs from the scorer's"
    return Planned(assignment, seconds, "an atom is oversize" if made.oversize else "")


def traced(case: Case, budget: int) -> Planned:
    return plan(case, budget, order="trace")


def greedy(case: Case, budget: int) -> Planned:
    return plan(case, budget, "greedy")


def assignment_of(made: Plan) -> dict[str, int]:
    """Return the assignment of a plan, for the scorer."""
    return {node: part.index for part in made.partitions for node in part.nodes}
