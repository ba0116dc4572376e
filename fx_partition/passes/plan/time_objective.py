"""Place boundaries for a time objective: the least time, with partitions within the budget if there are enough devices.

The bytes that a compiled kernel touches depend on the boundaries. So the planner starts from boundaries that minimise
bytes, counts the work of each atom under them, places the boundaries again to minimise time, and repeats this a few
times. The result is the fastest placement seen, each timed with the work under its own boundaries. It is never slower
than the placement that minimises bytes.
"""

from __future__ import annotations

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import format_bytes, format_seconds

from ..partitioner.certify import certify
from ..partitioner.contraction import contract
from ..partitioner.dp import balance, dp
from ..partitioner.greedy import FarthestReachSolver
from ..timing.partition_work import work_of_runs
from ..timing.time_dp import fastest, seconds_of
from .placement import Placement, shortage
from .problem import Problem
from .request import NO_BUDGET, Request

_ROUNDS = 4


def place_by_time(problem: Problem, request: Request) -> Placement:
    """Place the boundaries of a problem by the speed of its devices, in trace order.

    With fewer devices than the budget needs, partitions may exceed the budget, and their times include the spill.

    Raises:
        PartitionError: there are too few devices and ``on_shortage="error"``, or they have no memory to spill to.
    """
    speed, budget = request.speed, request.budget
    assert speed is not None and budget is not None
    contraction = contract(problem.chain)
    needed = len(FarthestReachSolver(contraction).run(budget).footprints)
    most = request.count or needed
    short = most < needed
    if short and request.on_shortage == "error":
        raise shortage(f"{needed} partitions of {format_bytes(budget)} are needed", request)
    starts, ordered = problem.atoms.starts, problem.eager.reordered(problem.atoms.order)
    limit = NO_BUDGET if short else budget
    found: tuple[int, ...] = tuple(balance(problem.chain, most) if short else dp(problem.chain, budget))
    seen: dict[tuple[int, ...], float] = {}
    while found not in seen and len(seen) <= _ROUNDS:
        cuts = [starts[boundary] for boundary in found[:-1]]
        works = work_of_runs(problem.captured, ordered, cuts, starts, problem.numbers)
        seen[found] = seconds_of(contraction, works, speed, request.objective, found)
        placed = fastest(contraction, works, speed, request.objective, most, limit)
        if placed is None:
            raise PartitionError(
                f"{speed.name} has no memory behind its {format_bytes(budget)} on chip, and {most} of them do not hold "
                f'the graph; name more devices ({needed} or more), or set oversize="slice" if one operator is too large'
            )
        found = tuple(placed.boundaries)
    best = min(seen, key=lambda each: seen[each])
    boundaries, seconds = list(best), seen[best]
    timed = {
        "throughput": "The slowest partition or hop takes",
        "latency": "All partitions and hops, one after another, take",
    }
    return Placement(
        boundaries,
        list(range(len(boundaries) - 1)),
        budget,
        certify(problem.chain, boundaries, budget),
        note=f"{timed[request.objective]} {format_seconds(seconds)} by the record of {speed.name}.",
    )
