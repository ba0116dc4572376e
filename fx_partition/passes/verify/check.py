"""Check a plan as a whole: first whether it can run the graph, then every figure, then every claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise

from fx_partition.common.errors import PartitionError

from ..capture.capture_model import collector_at_rest
from ..capture.captured_graph import CapturedGraph
from ..capture.graph_hash import fingerprint
from ..plan.plan import Plan
from ..slicing.rewrite import apply_slicings
from .all_orders import all_orders_faults
from .boundaries import boundary_faults, spread_boundary_faults, trace_faults, tradeoff_faults
from .bounds import proof_faults, spread_faults
from .case import Case, Fault
from .fields import (
    copy_faults,
    device_faults,
    module_faults,
    operator_faults,
    oversize_faults,
    partition_faults,
    symbol_faults,
    word_faults,
)
from .figures import figures
from .fused import FusedSizes, fused_sizes
from .groups import Group, asked_for, find_groups
from .ledger import Ledger, Sizes, measured_sizes
from .modules import as_on_device, kept_whole
from .order import find_needs
from .reading import read_graph
from .runs import Reading
from .searched import search_faults
from .structure import atom_starts, places, running_faults, torn
from .symbolic import symbolic_faults
from .windows import Stretches

_FIGURES = (
    "weight_bytes", "state_bytes", "activation_bytes", "workspace_bytes", "own_bytes", "total_bytes", "peak_node",
    "resident", "recv_bytes", "send_bytes", "inputs", "outputs",
)  # fmt: skip
# Beyond so many nodes, and this share of all, a group may have had others moved out of it.
_LARGE, _SHARE = 16, 0.1


def find_faults(captured: CapturedGraph, plan: Plan) -> list[Fault]:
    """Return what is wrong with a plan; no faults if it can run the graph, and all that it says is right.

    Args:
        captured: the graph that the plan was made for, before nodes are sliced.
    """
    found = fingerprint(captured.gm.graph)
    if plan.graph != found:
        return [Fault("graph", f"the plan was made for another graph: it is {plan.graph}, and this graph's is {found}")]
    try:
        planned = apply_slicings(captured, plan.slicings)
    except PartitionError as error:
        return [Fault("slicings", str(error))]
    return faults_of(read_graph(planned), plan)


@collector_at_rest()
def faults_of(reading: Reading, plan: Plan) -> list[Fault]:
    """As `find_faults`, of a graph that has been read as the plan cuts it."""
    if plan.memory == "device":
        reading = as_on_device(reading)
    needs, groups = find_needs(reading), list(find_groups(reading))
    if faults := running_faults(reading, plan, needs, groups):
        return faults
    if faults := [*symbol_faults(plan, reading.symbols), *device_faults(plan)]:
        return faults
    if plan.sessions > 1 and not any(memory.is_of_session for memory in reading.memories):
        return [Fault("sessions", f"it is {plan.sessions}, and the model writes no buffer for sessions to copy")]
    reading = reading.for_sessions(plan.sessions)
    numbers = reading.symbols.bind({name: number for name, number in plan.bindings.items() if number})
    together, faults = _wanted(reading, plan, "keep_together", asked_for(reading, plan.keep_together))
    if faults:
        return faults
    pieces, faults = _wanted(reading, plan, "boundaries", kept_whole(reading, plan.boundaries))
    if faults:
        return faults
    groups += together

    place = places(reading, plan)
    order = sorted(place, key=place.__getitem__)
    sizes: Sizes | FusedSizes = measured_sizes(reading, order, numbers, adds_up=plan.footprint == "sum")
    if plan.footprint == "fused":
        names = [name for partition in plan.partitions for name in partition.nodes]
        cuts = list(accumulate((len(partition.nodes) for partition in plan.partitions[:-1]), initial=0))
        cuts, on_device = cuts if names else [], plan.memory == "device"
        sizes, kernels = fused_sizes(
            reading.captured, numbers, names, cuts, sessions=plan.sessions, on_device=on_device
        )
        groups += kernels
    starts = atom_starts(len(order), [*groups, *pieces], place)
    return list(_faults(Case(plan, reading, needs, order, starts, sizes, numbers), groups, pieces))


def _wanted(
    reading: Reading, plan: Plan, path: str, found: Iterable[Group | str]
) -> tuple[list[Group], list[Fault]]:
    """Return the groups that an option of a plan asks for, and its faults: entries that name nothing, or torn groups.

    Args:
        path: the option's.
        found: its groups, and for each entry that names nothing the reason.
    """
    asked = list(found)
    groups = [group for group in asked if isinstance(group, Group)]
    unknown = [Fault(path, reason) for reason in asked if isinstance(reason, str)]
    return groups, unknown or [Fault(path, str(fault)) for fault in torn(reading, plan, groups)]


def _faults(case: Case, groups: list[Group], pieces: list[Group]) -> Iterator[Fault]:
    """Yield the faults of a plan that can run its graph.

    Args:
        groups: what gives wrong results in different partitions, or was asked to be in one.
        pieces: what ``boundaries`` keeps together. Nothing was moved out of these.
    """
    plan = case.plan
    yield from partition_faults(case, _FIGURES)
    yield from symbolic_faults(case)
    yield from copy_faults(plan)
    yield from operator_faults(case)
    yield from oversize_faults(case)
    yield from word_faults(plan)
    yield from module_faults(plan, case.reading.captured)
    if plan.footprint == "fused" or plan.follows_weights:
        claimed = list(_nothing_claimed(case))
        yield from claimed
        if claimed and plan.follows_weights:
            yield Fault("follows_weights", "it is true, and of a plan that follows other graphs nothing is proved")
        return
    bounds = list(spread_faults(case) if plan.device_budgets else proof_faults(case))
    yield from bounds
    yield from search_faults(case)
    if plan.device_budgets:
        if plan.tradeoffs:
            yield Fault("pareto", "there are none for devices of different sizes")
        for name in ("fewest_over_all_orders", "moment", "partitions_before", "partitions_behind"):
            if claim := getattr(plan.certificate, name):
                yield Fault(f"certificate.{name}", f"it is {claim}, and devices of different sizes have no such bound")
        if not bounds:
            yield from spread_boundary_faults(case)
        return
    yield from tradeoff_faults(case)
    yield from _order_and_boundaries(case, groups, pieces, claims_hold=not bounds)


def _newly_oversize(case: Case, traced: Ledger) -> Iterator[Fault]:
    """Yield a fault for each atom that the plan's order makes larger than the budget, and the trace's does not."""
    budget = case.plan.budget_bytes
    for place, (found, atoms) in enumerate(zip(case.figures, case.atoms, strict=True)):
        if found.total_bytes > budget and atoms == 1:
            steps = case.order[case.ends[place] : case.ends[place + 1]]
            size = figures(traced, min(steps), max(steps) + 1).total_bytes
            if size <= budget:
                why = f"they hold {found.total_bytes} bytes, and in the order of the trace {size}, which fit"
                yield Fault(f"partitions[{place}].nodes", why)


def _nothing_claimed(case: Case) -> Iterator[Fault]:
    """Nothing is proved of some plans.

    Compiled code is measured once the boundaries are known, and a plan that leaves weights where they are depends on
    other graphs.
    """
    plan, proof = case.plan, case.plan.certificate
    short = 0 < plan.num_devices < proof.min_partitions and len(plan.partitions) <= plan.num_devices
    if proof.min_partitions != min(1, len(plan.partitions)) and not short:
        yield Fault("certificate.min_partitions", f"it is {proof.min_partitions}, and nothing is proved")
    claims = {"witnesses": proof.witnesses, "max_bytes_lower_bound": proof.max_bytes_lower_bound,
              "max_witnesses": proof.max_witnesses, "exhaustive": proof.exhaustive,
              "fewest_over_all_orders": proof.fewest_over_all_orders, "moment": proof.moment,
              "partitions_before": proof.partitions_before, "partitions_behind": proof.partitions_behind}  # fmt: skip
    yield from (Fault(f"certificate.{name}", "nothing is proved") for name, claim in claims.items() if claim)
    if proof.orders_tried != 1:
        yield Fault("certificate.orders_tried", f"it is {proof.orders_tried}, and no other order is tried")
    if plan.tradeoffs:
        yield Fault("pareto", "there are none where nothing is proved")


def _order_and_boundaries(
    case: Case, groups: list[Group], pieces: list[Group], *, claims_hold: bool
) -> Iterator[Fault]:
    proof = case.plan.certificate
    in_trace = list(range(len(case.order)))
    places = dict(enumerate(in_trace))
    limit = max(_SHARE * len(in_trace), _LARGE)
    is_moved = any(b - a > limit for a, b in pairwise(atom_starts(len(in_trace), groups, places)))
    trace_starts = atom_starts(len(in_trace), [*groups, *pieces], places)
    sizes = measured_sizes(case.reading, in_trace, case.numbers, adds_up=case.ledger.adds_up)
    traced = case.ledger if case.in_trace_order else sizes.at(case.numbers)
    yield from all_orders_faults(case, traced, trace_starts, is_moved=is_moved)
    if not is_moved and not case.is_short:
        yield from _newly_oversize(case, traced)
    if not claims_hold:
        return
    own_order = case.in_trace_order or proof.orders_tried == 1
    if proof.orders_tried == 1 and not case.in_trace_order and not is_moved:
        yield Fault("certificate.orders_tried", "one order was tried, and the plan's is not that of the trace")
        return
    yield from boundary_faults(case, own_order=own_order)
    if not own_order and not is_moved and not case.is_short:
        yield from trace_faults(case, Stretches(traced, trace_starts))
