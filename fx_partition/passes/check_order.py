"""Check that a plan can run a graph: each node once, in an order that gives the graph's own results.

A plan that someone hands in may have been written for an older version of a model, or edited. A plan can run a graph if

- its partitions are numbered 0, 1, ... in the order in which they stand, and none is empty;
- every node that runs is in exactly one partition, and no partition names anything else (free nodes are repeated where
  they are needed, see `facts`);
- each node comes after all that must run before it: what makes its inputs, writes of what it reads, reads of what it
  writes, earlier random numbers and effects, and the ends of autocast and grad-mode regions (see `precedence`);
- nodes that give wrong results apart are in one partition (see `atoms.needed_hulls`).

Boundaries may stand anywhere else. Such a plan gives the graph's results, though its figures may be wrong: `check_plan`
looks for that.

Before (``relu_`` writes ``linear``, and runs in partition 0)::

    0: linear, relu_      1: add (reads linear)

After an edit that moves ``relu_`` into partition 1, behind ``add``::

    add runs before relu_, which must run first
    linear and relu_ must be in one partition: linear is written in place
"""

from __future__ import annotations

from collections.abc import Iterator

from .atoms import needed_hulls
from .capture import Captured
from .errors import PlanMismatchError
from .facts import Facts
from .gather import gather_facts
from .plan import Plan
from .precedence import all_predecessors

# An error names so many reasons; the rest are counted.
SHOWN = 3


def check_order(planned: Captured, plan: Plan, facts: Facts | None = None) -> None:
    """Raise an error unless a plan can run a graph.

    Args:
        planned: the graph that the plan cuts (`split.planned_graph`).
        plan: a plan that was not made from this graph in the same call.
        facts: what `gather_facts` says of ``planned``, if that is known.

    Raises:
        PlanMismatchError: it names the nodes, and says why.

    Example::

        >>> check_order(planned_graph(captured, plan), plan)      # doctest: +SKIP
    """
    reasons = order_faults(planned, gather_facts(planned) if facts is None else facts, plan)
    if reasons:
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        raise PlanMismatchError(
            f"this plan cannot run this graph: {'; '.join(reasons[:SHOWN])}{more}. Was it edited? "
            "Make one with fx_partition.plan(...)"
        )


def order_faults(planned: Captured, facts: Facts, plan: Plan) -> list[str]:
    """Return why a plan cannot run a graph; no reasons if it can. Linear in nodes, edges and touches.

    Args:
        planned: the graph that the plan cuts (`split.planned_graph`).
        facts: what `gather_facts` says of ``planned``, in trace order.
        plan: any plan.
    """
    numbering = [
        f"partition {partition.index} is the one at place {place}, so its index must be {place}"
        for place, partition in enumerate(plan.partitions)
        if partition.index != place
    ]
    empty = [f"partition {place} has no nodes" for place, found in enumerate(plan.partitions) if not found.nodes]
    if reasons := [*numbering, *empty, *_not_once(facts, plan)]:
        return reasons
    return [*_too_early(planned, facts, plan), *_torn(planned, facts, plan)]


def _not_once(facts: Facts, plan: Plan) -> Iterator[str]:
    """Nodes that run and are in no partition or in two, and names that are not such nodes."""
    steps = {step.node for step in facts.steps}
    holder: dict[str, int] = {}
    for place, partition in enumerate(plan.partitions):
        for name in partition.nodes:
            if name not in steps:
                yield f"partition {place} names {name}, which is not a node of this graph that runs"
            elif name in holder:
                yield f"{name} is in partition {holder[name]} and again in partition {place}"
            else:
                holder[name] = place
    yield from (f"{step.node} is in no partition" for step in facts.steps if step.node not in holder)


def _too_early(planned: Captured, facts: Facts, plan: Plan) -> Iterator[str]:
    order = [name for partition in plan.partitions for name in partition.nodes]
    place = {name: i for i, name in enumerate(order)}
    nodes = {node.name: node for node in planned.gm.graph.nodes}
    for t, found in all_predecessors(facts, nodes):
        name = facts.steps[t].node
        for before in (facts.steps[p].node for p in found):
            if place[before] > place[name]:
                yield f"{name} runs before {before}, which must run first"


def _torn(planned: Captured, facts: Facts, plan: Plan) -> Iterator[str]:
    holder = {name: place for place, partition in enumerate(plan.partitions) for name in partition.nodes}
    for hull in needed_hulls(planned, facts):
        members = [facts.steps[t].node for t in sorted(hull.members)]
        apart = next((name for name in members if holder[name] != holder[members[0]]), None)
        if apart is not None:
            yield f"{members[0]} and {apart} must be in one partition: {hull.reason}"
