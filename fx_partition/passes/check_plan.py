"""Checks a plan against the model that it was made for: every footprint and both proofs, from the definitions.

What the graph is (its facts and its atoms) is taken from the same passes that the planner reads; what follows from it
is recomputed by `checker.py`, which shares no code with the planner.
"""

from __future__ import annotations

from itertools import accumulate

from .atoms import find_atoms
from .capture import Captured
from .certificate import Certificate
from .certificate import Witness as Run
from .chain import Chain
from .check_order import order_faults
from .checker import footprints, verify, verify_bounds, verify_spread
from .facts import Facts
from .fusion import fuse
from .gather import gather_facts
from .lay_out import lay_out
from .plan import Plan
from .plan_parts import Witness
from .split import planned_graph


def check_plan(captured: Captured, facts: Facts, plan: Plan) -> list[str]:
    """What is wrong with a plan: no reasons if its figures are right and its lower bounds hold.

    Example::

        >>> check_plan(captured, gather_facts(captured), plan)     # doctest: +SKIP
        []

    Raises:
        PlanMismatchError: the plan was made for another graph.
    """
    sliced = planned_graph(captured, plan)
    if sliced is not captured:
        captured, facts = sliced, gather_facts(sliced)
    if reasons := order_faults(captured, facts, plan):
        return reasons
    numbers = plan.numbers()
    facts = facts.measured_at(numbers)
    kernels = fuse(captured, facts)[1] if plan.footprint == "fused" else []
    atoms = find_atoms(captured, facts, plan.keep_together, kernels)
    steps = [facts.steps[t].node for t in atoms.order]
    atom_of = {steps[t]: a for a in range(len(atoms.starts) - 1) for t in range(atoms.starts[a], atoms.starts[a + 1])}
    planned = [name for partition in plan.partitions for name in partition.nodes]
    atoms = atoms.permuted(list(dict.fromkeys(atom_of[name] for name in planned)))
    place = {facts.steps[t].node: i for i, t in enumerate(atoms.order)}
    if [place[name] for name in planned] != list(range(len(planned))):
        return ["the nodes of an atom do not stand together"]
    ends = list(accumulate((len(partition.nodes) for partition in plan.partitions), initial=0))
    starts = {step: atom for atom, step in enumerate(atoms.starts)}
    if not all(end in starts for end in ends):
        return ["a boundary lies within an atom"]
    boundaries = [starts[end] for end in ends]
    ordered = facts.reordered(atoms.order)
    if plan.footprint == "fused":
        ordered, _ = fuse(captured, ordered, ends[:-1])
    chain = lay_out(ordered, atoms, numbers, adds_up=plan.footprint == "sum")
    holder = {t: a for a in range(chain.num_atoms) for t in range(atoms.starts[a], atoms.starts[a + 1])}

    def runs(witnesses: tuple[Witness, ...]) -> tuple[Run, ...]:
        return tuple((holder[place[w.first]], holder[place[w.rejected]], w.bytes) for w in witnesses)

    proof = plan.certificate
    certificate = Certificate(
        proof.min_partitions, runs(proof.witnesses), proof.max_bytes_lower_bound, runs(proof.max_witnesses)
    )
    reasons = [
        f"partition {partition.index} holds {size} bytes, and the plan says {partition.total_bytes}"
        for partition, size in zip(plan.partitions, footprints(chain, boundaries), strict=True)
        if size != partition.total_bytes
    ]
    if plan.footprint == "fused":  # it claims nothing that could be wrong
        return reasons
    return reasons + _verify(plan, certificate, chain, boundaries, in_trace_order=planned == steps)


def _verify(
    plan: Plan, certificate: Certificate, chain: Chain, boundaries: list[int], in_trace_order: bool
) -> list[str]:
    if plan.device_budgets:
        slots = plan.partitions[-1].slot + 1 if plan.partitions else 0
        runs = [0] * (slots + 1)
        for partition, end in zip(plan.partitions, boundaries[1:], strict=True):
            runs[partition.slot + 1 :] = [end] * (slots - partition.slot)
        rounds = -(-slots // plan.num_devices)
        return verify_spread(certificate, chain, runs, plan.device_budgets * rounds)
    short = plan.num_partitions < certificate.min_partitions
    # The certificate is about any boundaries over the order that runs; a search over orders is for partitions that run
    # in the order of the trace, and may have one more than some boundaries over the same order would.
    if short or not in_trace_order:
        return verify_bounds(certificate, chain, boundaries, plan.budget_bytes)
    return verify(certificate, chain, boundaries, plan.budget_bytes)
