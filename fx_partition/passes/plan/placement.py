"""Choose the planner for a request, and place the boundaries of a chain with a certificate.

- as many devices as needed, or enough of one size: `dp.py` or `greedy.py`;
- too few of one size: as many partitions as devices (`dp.balance`), or several partitions on each device;
- devices of different sizes: `mixed_devices.py`;
- a number of devices and no size: find the smallest size that suffices, then as for one size;
- a time objective: `time_objective`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import format_bytes

from ..ordering.search import measure
from ..partitioner.certificate import Certificate
from ..partitioner.certify import certify, certify_spread
from ..partitioner.chain import Chain
from ..partitioner.contraction import contract
from ..partitioner.dp import balance, dp, exactly, smallest_budget
from ..partitioner.greedy import greedy
from ..partitioner.mixed_devices import farthest, overfill, spread
from ..partitioner.pareto import Tradeoff, pareto
from .request import NO_BUDGET, Request


@dataclass(frozen=True)
class Placement:
    """Boundaries, and the proof that they are the best.

    Attributes:
        boundaries: atom indices ``[0, ..., num_atoms]``, ascending.
        slots: the number of each partition's device; where devices take turns, round r adds r times their number.
        budget: bytes of one device, or of the largest.
        certificate: see `certificate`, and for devices of different sizes `certify.certify_spread`.
        tradeoffs: the measures of other plans, where all devices have the same size.
        note: the plan's note.
    """

    boundaries: list[int]
    slots: list[int]
    budget: int
    certificate: Certificate
    tradeoffs: tuple[Tradeoff, ...] = ()
    note: str = ""


def place(chain: Chain, request: Request, found: list[int] | None = None) -> Placement:
    """Place the boundaries of a chain.

    Args:
        chain: the planner's input.
        request: the request.
        found: the boundaries that a search over orders has found, for devices of one size.

    Raises:
        PartitionError: there are too few devices and ``on_shortage="error"``.
    """
    if request.budgets:
        return _place_uneven(chain, request)
    budget = smallest_budget(chain, request.exactly or request.count) if request.budget is None else request.budget
    if request.exactly:
        boundaries = _exactly(chain, request.exactly)
        own = certify(chain, boundaries, budget)
        return Placement(boundaries, list(range(request.exactly)), budget, own)
    boundaries = found or solve(chain, budget, request)
    needed = len(boundaries) - 1
    if request.count and needed > request.count and request.on_shortage != "wrap":
        if request.on_shortage == "error":
            raise shortage(f"{needed} partitions of {format_bytes(budget)} are needed", request)
        boundaries = balance(chain, request.count)
    return Placement(
        boundaries,
        list(range(len(boundaries) - 1)),
        budget,
        certify(chain, boundaries, budget),
        _tradeoffs(chain, budget, found) if budget < NO_BUDGET else (),
    )


def _exactly(chain: Chain, num_partitions: int) -> list[int]:
    if num_partitions > chain.num_atoms:
        raise PartitionError(
            f"the graph can be cut into {chain.num_atoms} pieces at most, too few for {num_partitions} partitions; "
            "ask for fewer"
        )
    return exactly(chain, num_partitions)


def _tradeoffs(chain: Chain, budget: int, found: list[int] | None) -> tuple[Tradeoff, ...]:
    """Return the trade-offs over the order in which the plan runs.

    The nodes of a partition run in trace order, so a searched plan is measured again. A row of the front that would be
    better than it, with its nodes in the searched order, is left out.
    """
    rows = pareto(chain, budget)
    own = measure(chain, found, budget) if found else None
    if own is None or own in rows:
        return tuple(rows)
    return tuple(sorted([own, *(row for row in rows if not row.is_as_good_as(own))]))


def solve(chain: Chain, budget: int, request: Request) -> list[int]:
    """Return the boundaries for as many devices of one size as needed."""
    return greedy(chain, budget) if request.algorithm == "greedy" else dp(chain, budget, request.slack)


def _place_uneven(chain: Chain, request: Request) -> Placement:
    budgets = list(request.budgets)
    runs = _spread(chain, budgets, request)
    if runs is None:
        if request.on_shortage == "error":
            sizes = ", ".join(map(format_bytes, request.budgets))
            raise shortage(f"devices of {sizes} do not hold the graph", request)
        if request.on_shortage == "balance":
            runs = overfill(chain, budgets)
    while runs is None:  # ends: each round places at least one atom, because every atom fits the largest device or none
        budgets += budgets
        runs = _spread(chain, budgets, request)
    used = [slot for slot, (first, end) in enumerate(pairwise(runs)) if first < end]
    boundaries = [0, *(runs[slot + 1] for slot in used)]
    assert request.budget is not None
    return Placement(boundaries, used, request.budget, certify_spread(chain, runs, budgets))


def _spread(chain: Chain, budgets: list[int], request: Request) -> list[int] | None:
    if request.algorithm == "dp":
        return spread(chain, budgets, request.slack)
    runs, _ = farthest(contract(chain), budgets, max(budgets))
    return runs if runs[-1] == chain.num_atoms else None


def shortage(reason: str, request: Request) -> PartitionError:
    """Return the error for too few devices."""
    return PartitionError(
        f"{reason} and there are {request.count} devices; name more, raise cache_bytes, or set on_shortage to "
        f'"balance" or "wrap"'
    )
