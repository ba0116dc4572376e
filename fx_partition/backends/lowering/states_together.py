"""A plan under which each state, what the graph writes of its weights and inputs, is touched in one place alone.

A partition may read a state that a later one writes, as they run one after the other. Where stages overlap (the next
request reads before this one has written), or where each holds weights of its own, all that touches it stays together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from fx_partition.common.errors import PartitionWarning
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.records import Partition
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import PartitionGraph

from .graph_context import planned_with_memory
from .stage import split_stages


def plan_states_together(
    captured: CapturedGraph,
    facts: GraphMemory,
    request: Request,
    make: Callable[[Request], Plan],
    place: Callable[[Partition], Hashable],
    *,
    says: str = "",
) -> tuple[Plan, CapturedGraph, list[PartitionGraph]]:
    """Plan a graph, once more with each state kept together where the first plan takes it apart.

    Args:
        make: makes a plan for a request.
        place: where a partition runs.
        says: a reason for a warning, should states be kept together; "" for none.

    Returns:
        The plan, the graph that it cuts, and the stages.
    """
    for _ in range(2):
        plan = make(request)
        planned, memory = planned_with_memory(captured, facts, plan)
        stubs = split_stages(planned, plan, memory)
        apart = _touched_apart(facts, plan, stubs, place)
        if not apart:
            return plan, planned, stubs
        if says:
            warnings.warn(f"{', '.join(apart)}: {says}", PartitionWarning, stacklevel=2)
        request = replace(request, keep_together=(*request.keep_together, *apart.values()))
    raise AssertionError("what was kept together is apart")


def _touched_apart(
    facts: GraphMemory, plan: Plan, stubs: Sequence[PartitionGraph], place: Callable[[Partition], Hashable]
) -> dict[str, tuple[str, ...]]:
    """States that several places take, with the nodes that touch each."""
    places: dict[str, set[Hashable]] = {}
    for partition, stub in zip(plan.partitions, stubs, strict=True):
        for node in stub.inputs:
            if node.name in facts.written:
                places.setdefault(node.name, set()).add(place(partition))
    return {
        name: tuple(step.node for step in facts.steps if facts.weight_of[name] in {*step.weights, *step.weight_writes})
        for name, found in places.items()
        if len(found) > 1
    }
