"""The certificate in words: why no plan has fewer partitions, and why none has a smaller maximum."""

from __future__ import annotations

from fx_partition.passes.plan import Plan, Witness
from fx_partition.passes.sizes import format_bytes

from .document import Section, code, count, shortened


def proof_sections(plan: Plan) -> tuple[Section, ...]:
    """A section on the number of partitions, one on the maximum; the second ends with what was searched."""
    return _fewest(plan), _smallest(plan)


def _hold(witness: Witness) -> str:
    return f"{code(witness.first)} .. {code(witness.rejected)} hold {format_bytes(witness.bytes)} together"


def _fewest(plan: Plan) -> Section:
    least, budget = plan.certificate.min_partitions, format_bytes(plan.budget_bytes)
    title = f"Why not fewer than {count(least, 'partition')}"
    if least == 1:
        return Section(title, "One is the least there is.")
    lead = (
        f"Each of these runs exceeds the budget of {budget}, so every plan has a boundary inside it; no boundary lies "
        f"in two of them, so there are at least {least - 1} boundaries:"
    )
    over = [
        f"{_hold(w)}, {format_bytes(w.bytes - plan.budget_bytes)} more than the budget"
        for w in plan.certificate.witnesses
    ]
    return Section(title, lead, points=shortened(over))


def _smallest(plan: Plan) -> Section:
    proof, k = plan.certificate, plan.num_partitions
    bound = format_bytes(proof.max_bytes_lower_bound)
    alone = {atom.nodes for atom in plan.oversize}
    regular = [p.total_bytes for p in plan.partitions if p.nodes not in alone]
    lines: list[str] = []
    if len(regular) < k:
        lines.append("Operators larger than the budget are as large in every plan; this is about the other partitions.")
    if not regular:
        lines.append("There is no other partition.")
    elif max(regular) > proof.max_bytes_lower_bound:
        lines.append(
            f"There may be one: the largest has {format_bytes(max(regular))}, and only less than {bound} is ruled out "
            f'for {count(k, "partition")}; algorithm="dp" finds the smallest.'
        )
    elif k == 1:
        lines.append("There is one partition, and it holds the whole graph.")
    elif len(proof.max_witnesses) == 1:
        lines.append(f"{_hold(proof.max_witnesses[0])}, and cannot be separated.")
    else:
        lines.append(
            f"Each of these {len(proof.max_witnesses)} runs holds {bound} or more, no boundary lies in two of them, "
            f"and {count(k, 'partition')} have {count(k - 1, 'boundary', 'boundaries')}: "
            f"one run stays whole."
        )
        lines += shortened(map(_hold, proof.max_witnesses))
    lines.append(
        "Searched: the order in which the graph was traced, and no other."
        if proof.orders_tried == 1
        else f"Searched: {proof.orders_tried} orders of the graph's nodes."
    )
    return Section("Why no smaller maximum", points=tuple(lines))
