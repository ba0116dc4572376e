"""From facts to a plan: lay the graph out as a chain of numbers, place the boundaries, describe the partitions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from .atoms import Atoms, find_atoms
from .capture import Captured
from .chain import Chain
from .describe import Writer
from .errors import OversizeError
from .facts import Facts
from .fingerprint import fingerprint
from .gather import gather_facts
from .greedy import oversize_atoms
from .lay_out import lay_out
from .placing import NO_BUDGET, place, solve
from .plan import Oversize, Plan
from .precedence import atom_predecessors
from .reorder import Reordered, Tried, permuted, search_order
from .replicas import share_out
from .request import Request
from .sizes import format_bytes
from .slicing import Slicing, apply_slicings, find_slicings, why_not_sliced


def make_plan(captured: Captured, facts: Facts, request: Request) -> Plan:
    """Place the boundaries of a graph whose facts are known.

    Raises:
        OversizeError: an atom exceeds the budget and ``oversize="error"``.
        PartitionError: ``bind`` or ``keep_together`` names nothing, or devices are short and ``on_shortage="error"``.
    """
    graph = fingerprint(captured.gm.graph)
    numbers = facts.symbols.bind(request.bind)
    atoms = find_atoms(captured, facts, request.keep_together)
    slicings: tuple[Slicing, ...] = ()
    if request.budget is not None and request.oversize == "slice":
        slicings = find_slicings(captured, facts, atoms, numbers, request.budget, request.keep_together)
    if slicings:
        captured = apply_slicings(captured, slicings)
        facts = gather_facts(captured)
        atoms = find_atoms(captured, facts, request.keep_together)
    traced, facts = facts, facts.reordered(atoms.order)
    chain = lay_out(facts, atoms, numbers)
    found = _search(captured, facts, atoms, chain, request)
    if found.order:
        atoms = atoms.permuted(found.order)
        facts, chain = traced.reordered(atoms.order), permuted(chain, found.order)
    writer = Writer(facts, atoms, chain)
    if request.budget is not None and request.oversize == "error":
        for atom in oversize_atoms(chain, request.budget):
            raise OversizeError(_explain(writer.oversize(atom), request.budget))
    placement = place(chain, request, found.boundaries)
    budgets = request.budgets or (placement.budget,)
    plan = Plan(
        graph=graph,
        algorithm=request.algorithm,
        objective=request.objective,
        max_slack=request.max_slack,
        footprint=request.footprint,
        budget_bytes=placement.budget,
        budget_is_smallest=request.budget is None,
        device_budgets=request.budgets if len(set(request.budgets)) > 1 else (),
        num_devices=request.count,
        symbols=facts.symbols,
        bindings={symbol.name: number for symbol, number in numbers.items()},
        partitions=tuple(
            writer.partition(i, a, b, slot, budgets[slot % len(budgets)])
            for i, ((a, b), slot) in enumerate(zip(pairwise(placement.boundaries), placement.slots, strict=True))
        ),
        certificate=writer.proof(placement.certificate, found.tried),
        tradeoffs=placement.tradeoffs,
        oversize=tuple(
            _with_reason(writer.oversize(a), captured, traced, request)
            for a in oversize_atoms(chain, placement.budget)
        ),
        slicings=slicings,
        keep_together=tuple(group if isinstance(group, str) else tuple(group) for group in request.keep_together),
        unknown_workspace=tuple(dict.fromkeys(name for step in facts.steps for name in step.unknown)),
    ).with_devices(request.devices)
    return _replicated(plan, budgets) if request.replicate else plan


def _search(captured: Captured, facts: Facts, atoms: Atoms, chain: Chain, request: Request) -> Reordered:
    """Another order and its boundaries, where the search is for one size of devices and enough of them."""
    nothing = Reordered([], [], Tried(1, False))
    budget = request.budget
    if request.order == "trace" or request.algorithm != "dp" or budget is None or len(set(request.budgets)) > 1:
        return nothing
    if budget >= NO_BUDGET:
        return nothing
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    predecessors = atom_predecessors(facts, nodes, atoms.starts)
    traffic = request.slack > 0
    return search_order(chain, predecessors, budget, lambda c: solve(c, budget, request), traffic=traffic)


def _with_reason(atom: Oversize, captured: Captured, facts: Facts, request: Request) -> Oversize:
    """The atom, with why it was not sliced if that was asked for."""
    if request.oversize != "slice":
        return atom
    reasons = (why_not_sliced(captured, facts, node) for node in atom.nodes)
    return replace(atom, why_whole=next(filter(None, reasons), "what its slices share does not fit"))


def _replicated(plan: Plan, budgets: tuple[int, ...]) -> Plan:
    """The plan with copies of its largest partitions on the devices that have none."""
    taken = {p.slot % plan.num_devices for p in plan.partitions}
    spare = [device for device in range(plan.num_devices) if device not in taken]
    copies = share_out([p.total_bytes for p in plan.partitions], [budgets[d % len(budgets)] for d in spare])
    return plan.with_replicas(tuple(tuple(spare[d] for d in found) for found in copies))


def _explain(atom: Oversize, budget: int) -> str:
    return (
        f"{atom.nodes[0]} needs {format_bytes(atom.total_bytes)} by itself and the budget is {format_bytes(budget)}: "
        f"weights {format_bytes(atom.weight_bytes)}, inputs {format_bytes(atom.input_bytes)}, outputs "
        f"{format_bytes(atom.output_bytes)}, workspace {format_bytes(atom.workspace_bytes)}; raise cache_bytes, or set "
        f'oversize="slice" to compute it in parts or "stream" to give it a partition that spills'
    )
