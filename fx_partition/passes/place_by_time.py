"""Boundaries for a time objective: partitions within the budget where there are devices enough, and the least time."""

from __future__ import annotations

from .certify import certify
from .contraction import contract
from .fastest import fastest
from .greedy import Sweeper
from .placing import Placement, shortage
from .problem import Problem
from .request import NO_BUDGET, Request
from .sizes import format_bytes, format_seconds
from .work import work_of_atoms


def place_by_time(problem: Problem, request: Request) -> Placement:
    """Place the boundaries of a problem by the speed of its devices, in the order of the trace.

    Where fewer devices are given than the budget needs, no partition is too large: times say what spilling costs.

    Raises:
        PartitionError: devices are short and ``on_shortage="error"``.
    """
    speed, budget = request.speed, request.budget
    assert speed is not None and budget is not None
    contraction = contract(problem.chain)
    needed = len(Sweeper(contraction).run(budget).footprints)
    most = request.count or needed
    if most < needed and request.on_shortage == "error":
        raise shortage(f"{needed} partitions of {format_bytes(budget)} are needed", request)
    starts = problem.atoms.starts[: problem.chain.num_atoms]
    works = work_of_atoms(problem.captured, problem.eager.reordered(problem.atoms.order), starts, problem.numbers)
    found = fastest(contraction, works, speed, request.objective, most, NO_BUDGET if most < needed else budget)
    boundaries, seconds = found.boundaries, found.seconds
    what = {
        "throughput": "The slowest partition or hop takes",
        "latency": "All partitions and hops, one after another, take",
    }
    return Placement(
        boundaries,
        list(range(len(boundaries) - 1)),
        budget,
        certify(problem.chain, boundaries, budget),
        note=f"{what[request.objective]} {format_seconds(seconds)} by the record of {speed.name}.",
    )
