"""Explain the certificate: why no plan has fewer partitions, and why none has a smaller maximum."""

from __future__ import annotations

from fx_partition.common.units import format_bytes
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.records import Witness
from fx_partition.passes.plan.request import TIMED

from .document import Document, Section, code, count, shortened
from .headline import headline, is_short

_UNPROVED = (
    "What compiled code allocates is exact only once the boundaries are known, so these are the best boundaries by "
    'estimates, and no plan is ruled out; footprint="peak" comes with a proof.'
)

_FOLLOWS = (
    "The boundaries are where earlier graphs of the model have its weights, so that no weight is copied to one more "
    "device; other boundaries may give fewer or smaller partitions."
)

_BY_TIME = {
    "throughput": (
        "They were placed by time: by the planner's estimates the slowest partition or hop is as short as possible, in "
        "trace order, on these devices, and within the budget where there are enough of them."
    ),
    "latency": (
        "They were placed by time: by the planner's estimates all partitions and hops, one after another, take as "
        "little as possible, in trace order."
    ),
}


def why(plan: Plan, checked: str = "") -> Document:
    """Return a document with the proofs alone; ``checked`` is its closing line."""
    if not plan.partitions or not plan.has_budget:
        return Document(headline(plan), (), checked)
    return Document(headline(plan), proof_sections(plan), checked)


def proof_sections(plan: Plan) -> tuple[Section, ...]:
    """Return a section on the number of partitions, and one on the maximum that ends with the orders searched."""
    if plan.follows_weights:
        return (Section("No proof", _FOLLOWS),)
    if plan.footprint == "fused":
        return (Section("No proof", _UNPROVED),)
    if plan.device_budgets:
        return _fewest_devices(plan), _smallest(plan)
    if plan.objective in TIMED:
        return _fewest(plan), Section("Why these boundaries", _BY_TIME[plan.objective])
    return _fewest(plan), _smallest(plan)


def _hold(witness: Witness) -> str:
    if witness.first == witness.rejected:
        return f"{code(witness.first)} holds {format_bytes(witness.bytes)} by itself"
    return f"{code(witness.first)} .. {code(witness.rejected)} hold {format_bytes(witness.bytes)} together"


def _fewest(plan: Plan) -> Section:
    least, budget = plan.certificate.min_partitions, format_bytes(plan.budget_bytes)
    title = f"Why not fewer than {count(least, 'partition')}"
    if least == 1:
        return Section(title, "A plan has at least one.")
    more = plan.num_partitions - least
    lead = (
        f"Each of these runs exceeds the budget of {budget}, so every plan has a boundary inside it; no boundary lies "
        f"in two of them, so there are at least {least - 1} boundaries:"
    )
    over = [
        f"{_hold(w)}, {format_bytes(w.bytes - plan.budget_bytes)} more than the budget"
        for w in plan.certificate.witnesses
    ]
    if more > 0 and plan.objective not in TIMED:
        over.append(
            f"(This plan has {more} more: of the orders searched, none needs fewer if the nodes of each partition run "
            f"in trace order.)"
        )
    return Section(title, lead, points=shortened(over))


def _fewest_devices(plan: Plan) -> Section:
    """Return the section on the number of devices, for devices of different sizes: where each of them must end."""
    least, budgets = plan.certificate.min_partitions, plan.device_budgets
    title = "Why they do not hold it" if is_short(plan) else f"Why not fewer than {count(least, 'device')}"
    if least == 1:
        return Section(title, "A plan uses at least one.")
    lead = (
        "Each device begins at the earliest where the one before it must have ended, and cannot hold the run that "
        "follows:"
    )
    points = [
        f"device {place} of {format_bytes(budgets[place % len(budgets)])}: {_hold(w)}"
        for place, w in enumerate(plan.certificate.witnesses)
    ]
    return Section(title, lead, points=shortened(points))


def _smallest(plan: Plan) -> Section:
    lines: list[str] = []
    if len(plan.oversize) and plan.num_partitions > 1:
        lines.append("Operators larger than the budget are as large in every plan; this is about the other partitions.")
    lines += _bound(plan)
    lines.append(_searched(plan))
    return Section("Why no smaller maximum", points=tuple(lines))


def _searched(plan: Plan) -> str:
    """Return how far the proofs reach beyond the order in which the partitions run, as a sentence."""
    proof = plan.certificate
    if proof.exhaustive and proof.orders_tried == 1:
        return "No other order of the nodes can be better: what must run before what leaves no choice that matters."
    if proof.exhaustive:
        return (
            f"No other order of the nodes is better: all {proof.orders_tried} sets of nodes that may come first were "
            f"searched, with the nodes of each partition in trace order."
        )
    if proof.fewest_over_all_orders == plan.num_partitions:
        return f"{_over_all_orders(plan)} Another order may have a smaller maximum: {proof.orders_tried} were searched."
    if proof.orders_tried == 1:
        return "Searched: the order in which the graph was traced, and no other."
    return f"Searched: {proof.orders_tried} orders and sets of nodes that may come first; others may be better."


def _over_all_orders(plan: Plan) -> str:
    """Return why no order has fewer partitions, as sentences."""
    proof = plan.certificate
    moment, before, behind = proof.moment, proof.partitions_before, proof.partitions_behind
    held = f"the weights and the values live behind {code(moment)} in trace order" if moment else "the weights"
    fewest = f"{count(plan.num_partitions, 'partition')}: the fewest over all orders, proved. Whatever runs first, "
    if not before and not behind:
        return f"{fewest}{held} fill at least that many."
    return (
        f"{fewest}at least {before} of them run before some nodes and {behind} behind, for what must run there does "
        f"not fit together with them; of those nodes {held} fill at least {plan.num_partitions - before - behind}."
    )


def _bound(plan: Plan) -> list[str]:
    proof, k, regular = plan.certificate, plan.num_partitions, plan.regular_max_bytes
    bound = format_bytes(proof.max_bytes_lower_bound)
    if plan.device_budgets and is_short(plan):
        return ["The devices are too small; the largest excess over a device's budget is as small as possible."]
    if not regular:
        return ["There is no other partition."]
    if regular > proof.max_bytes_lower_bound:
        return [
            f"There may be one: the largest has {format_bytes(regular)}, and only less than {bound} is ruled out "
            f"for {count(k, 'partition')}; {_way_to_smallest(plan)}."
        ]
    if k == 1 and not plan.device_budgets:
        return ["There is one partition, and it holds the whole graph."]
    if plan.device_budgets:
        lead = f"If no device held {bound} or more, these would be too much for each in turn, the last one too:"
        return [lead, *shortened(map(_hold, proof.max_witnesses))]
    if len(proof.max_witnesses) == 1:
        return [f"{_hold(proof.max_witnesses[0])}, and cannot be separated."]
    return [
        f"Each of these {len(proof.max_witnesses)} runs holds {bound} or more, no boundary lies in two of them, "
        f"and {count(k, 'partition')} have {count(k - 1, 'boundary', 'boundaries')}: one run stays whole.",
        *shortened(map(_hold, proof.max_witnesses)),
    ]


def _way_to_smallest(plan: Plan) -> str:
    if plan.algorithm == "greedy":
        return 'algorithm="dp" finds the smallest'
    return 'fewer bytes are cut for it; objective="balanced" without max_slack finds the smallest'
