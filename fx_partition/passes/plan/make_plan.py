"""Make a plan: lay the graph out as a chain of numbers, place the boundaries, describe the partitions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import sympy

from fx_partition.common.errors import OversizeError, PartitionError, PartitionWarning
from fx_partition.common.units import format_bytes

from ..capture.captured_graph import CapturedGraph
from ..capture.graph_hash import fingerprint
from ..capture.symbolic_sizes import Symbols, explain_guess
from ..constraints.dependencies import atom_predecessors
from ..constraints.module_boundaries import NODES
from ..footprint.graph_memory import GraphMemory, NodeMemory
from ..ordering.search import OrderedPlan, SearchStats, search_order
from ..partitioner.dp import smallest_budget
from ..partitioner.greedy import oversize_atoms
from ..partitioner.permute import permuted
from ..slicing.rewrite import Slicer
from .builder import PlanBuilder
from .follow_weights import PlacedProblem, WeightPlaces, follow_weights
from .fused_refinement import refine
from .module_runs import module_stages
from .placement import place, solve
from .plan import Plan
from .problem import Problem, pose
from .records import Oversize, Proof
from .replication import share_out
from .request import DEVICE, NO_BUDGET, Request
from .time_objective import place_by_time

# Trace order, without boundaries yet.
_NOTHING = OrderedPlan([], [], SearchStats(1, False))


def make_plan(
    captured: CapturedGraph, memory: GraphMemory, request: Request, held: WeightPlaces | None = None
) -> Plan:
    """Return the plan of a graph, from its memory.

    Args:
        captured, memory: the graph.
        request: what the caller asks for.
        held: where earlier graphs of the model have their weights, to leave them there (`follow_weights`); then the
            request names devices.

    Raises:
        OversizeError: an atom exceeds the budget and ``oversize="error"``.
        PartitionError: ``bind``, ``keep_together`` or ``boundaries`` names something that the graph does not have, or
            there are too few devices and ``on_shortage="error"``.
    """
    numbers = memory.symbols.bind(request.bind)
    guessed = {symbol.name: symbol for symbol in memory.symbols.assumed(request.bind)}
    if not guessed:
        return _plan_for(captured, memory, request, numbers, held)
    strict = request.oversize == "error" or request.on_shortage == "error"
    # An error must not come from a guess. A graph that does not fit at size 1 fits at no size, so it raises the error;
    # else the plan at the guessed size may spill, with a warning.
    if strict:
        _plan_for(captured, memory, request, {**numbers, **dict.fromkeys(guessed.values(), 1)})
        request = _lenient(request)
    try:
        plan = _plan_for(captured, memory, request, numbers, held)
    except PartitionError as error:
        raise type(error)(f"{error} ({explain_guess(guessed)})") from error
    if strict and plan.spill_bytes:
        text = f"some partitions are over the budget, but by a guess: {explain_guess(guessed)}"
        warnings.warn(text, PartitionWarning, stacklevel=2)
    return plan


def _lenient(request: Request) -> Request:
    """Return the request with spills in place of errors."""
    oversize = "stream" if request.oversize == "error" else request.oversize
    on_shortage = "balance" if request.on_shortage == "error" else request.on_shortage
    return replace(request, oversize=oversize, on_shortage=on_shortage)


def _plan_for(
    captured: CapturedGraph,
    memory: GraphMemory,
    request: Request,
    numbers: Mapping[sympy.Symbol, int],
    held: WeightPlaces | None = None,
) -> Plan:
    problem = traced = pose(captured, memory, request, numbers)
    if request.budget is not None and request.oversize == "error":
        builder = PlanBuilder(problem.model, problem.atoms, problem.chain)
        for atom in oversize_atoms(problem.chain, request.budget):
            raise OversizeError(_explain(builder.oversize(atom), request.budget, request))
    found = _search(problem, request)
    if request.count and len(found.boundaries) - 1 > request.count and request.on_shortage == "balance":
        found = _for_too_few_devices(problem, found, request.count)
    steps = traced.model.steps
    if problem.atoms.order != tuple(range(len(steps))):  # steps moved out of a group: no bound over trace order holds
        found = found._replace(tried=found.tried._replace(bound=None))
    if found.order:
        problem = problem.in_order(found.order)
    placement = place_by_time(problem, request) if request.speed else place(problem.chain, request, found.boundaries)
    placed = PlacedProblem(problem, refine(problem, placement, request))
    if held is not None and placement.slots:
        placed = follow_weights(traced, placed, request, held)
    stats = SearchStats(1, False) if placed.follows_weights else found.tried
    return _described(fingerprint(captured.gm.graph), placed, stats, steps, request)


def plan_without_partitions(graph: str, request: Request, note: str) -> Plan:
    """Return a plan without partitions, for a graph whose memory is unknown.

    Args:
        graph: its fingerprint.
        request: the request that the plan repeats.
        note: the reason, as a sentence.
    """
    return Plan(
        graph=graph,
        algorithm=request.algorithm,
        objective=request.objective,
        max_slack=request.max_slack,
        footprint=request.footprint,
        memory=request.memory,
        boundaries=request.boundaries,
        budget_bytes=request.budget or NO_BUDGET,
        budget_is_smallest=False,
        device_budgets=(),
        num_devices=request.count,
        symbols=Symbols(),
        bindings={},
        partitions=(),
        certificate=Proof(0, (), 0, ()),
        note=note,
    )


def _search(problem: Problem, request: Request) -> OrderedPlan:
    """Search other orders for a better plan; return trace order where the request rules a search out."""
    budget = request.budget
    if request.exactly or request.order == "trace" or request.algorithm != "dp" or request.budgets:
        return _NOTHING
    if request.footprint != "peak":
        return _NOTHING
    if budget is None or budget >= NO_BUDGET or request.speed:
        return _NOTHING
    nodes = {node.name: node for node in problem.captured.gm.graph.nodes}
    predecessors = atom_predecessors(problem.model, nodes, problem.atoms.starts)
    traffic = request.slack > 0
    return search_order(problem.chain, predecessors, budget, lambda c: solve(c, budget, request), traffic=traffic)


def _for_too_few_devices(problem: Problem, found: OrderedPlan, count: int) -> OrderedPlan:
    """Keep the searched order unless trace order needs a smaller budget; boundaries are placed later."""
    if smallest_budget(permuted(problem.chain, found.order), count) > smallest_budget(problem.chain, count):
        return _NOTHING
    return found._replace(boundaries=[], tried=SearchStats(found.tried.searched, False))


def _described(
    graph: str, placed: PlacedProblem, stats: SearchStats, traced: Sequence[NodeMemory], request: Request
) -> Plan:
    """Return the plan in names of the graph."""
    problem, (placement, memory, chain) = placed.problem, placed.refined
    builder = PlanBuilder(memory, problem.atoms, chain)
    parts = zip(pairwise(placement.boundaries), placement.slots, strict=True)
    budgets = request.budgets or (placement.budget,)
    plan = Plan(
        graph=graph,
        algorithm=request.algorithm,
        objective=request.objective,
        max_slack=request.max_slack,
        footprint=request.footprint,
        memory=request.memory,
        boundaries=request.boundaries,
        budget_bytes=placement.budget,
        budget_is_smallest=request.budget is None,
        device_budgets=request.budgets,
        num_devices=request.count,
        symbols=memory.symbols,
        bindings={symbol.name: number for symbol, number in memory.symbols.known_numbers(request.bind).items()},
        partitions=tuple(
            builder.partition(i, a, b, slot, budgets[slot % len(budgets)]) for i, ((a, b), slot) in enumerate(parts)
        ),
        certificate=builder.proof(placement.certificate, stats, traced),
        tradeoffs=placement.tradeoffs,
        oversize=_with_reasons(
            [builder.oversize(atom) for atom in oversize_atoms(chain, placement.budget)], problem, request
        ),
        slicings=problem.slicings,
        keep_together=tuple(group if isinstance(group, str) else tuple(group) for group in request.keep_together),
        note=placement.note,
        sessions=request.sessions,
        unknown_workspace=tuple(dict.fromkeys(name for step in memory.steps for name in step.unknown)),
        estimated_workspace=tuple(dict.fromkeys(name for step in memory.steps for name in step.estimated)),
        follows_weights=placed.follows_weights,
    ).with_devices(request.devices)
    plan = replace(plan, modules=module_stages(problem.captured, plan.partition_of))
    return _replicated(plan, budgets) if request.replicate else plan


def _with_reasons(atoms: list[Oversize], problem: Problem, request: Request) -> tuple[Oversize, ...]:
    """Return the oversize atoms, each with the reason why it was not sliced if the request is to slice."""
    if request.oversize != "slice" or not atoms:
        return tuple(atoms)
    slicer = Slicer(problem.captured, problem.eager)
    found = [next(filter(None, map(slicer.why_not, a.nodes)), "what its slices share does not fit") for a in atoms]
    return tuple(replace(atom, why_whole=reason) for atom, reason in zip(atoms, found, strict=True))


def _replicated(plan: Plan, budgets: tuple[int, ...]) -> Plan:
    """Return the plan with copies of its largest partitions on the devices that have no partition."""
    taken = {p.slot % plan.num_devices for p in plan.partitions}
    spare = [device for device in range(plan.num_devices) if device not in taken]
    copies = share_out([p.total_bytes for p in plan.partitions], [budgets[d % len(budgets)] for d in spare])
    return plan.with_replicas(tuple(tuple(spare[d] for d in found) for found in copies))


def _explain(atom: Oversize, budget: int, request: Request) -> str:
    if request.boundaries != NODES and len(atom.nodes) > 1:
        way = f'boundaries="nodes" to separate it from the {len(atom.nodes) - 1} nodes that stay with it, or oversize='
    elif request.boundaries != NODES or request.memory == DEVICE:
        way = "oversize="
    else:
        way = 'oversize="slice" to compute it in parts or '
    return (
        f"{atom.nodes[0]} needs {format_bytes(atom.total_bytes)} by itself and the budget is {format_bytes(budget)}: "
        f"weights {format_bytes(atom.weight_bytes)}, inputs {format_bytes(atom.input_bytes)}, outputs "
        f"{format_bytes(atom.output_bytes)}, workspace {format_bytes(atom.workspace_bytes)}; raise cache_bytes, or set "
        f'{way}"stream" to give it a partition that spills'
    )
