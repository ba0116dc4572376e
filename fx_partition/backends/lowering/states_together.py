"""Plan a graph so that only one place touches each state: a weight or an input that the graph writes.

In one call a partition may read a state that a later one writes, as they run one after the other. Where stages overlap
(the next request reads before this one has written), or where each place has its own weights, all nodes that touch a
state must stay together.
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
    memory: GraphMemory,
    request: Request,
    make: Callable[[Request], Plan],
    place: Callable[[Partition], Hashable],
    *,
    says: str = "",
) -> tuple[Plan, CapturedGraph, list[PartitionGraph]]:
    """Plan and split a graph; where several places touch a state, plan again with its nodes kept together.

    Args:
        make: makes a plan for a request.
        place: returns the place where a partition runs.
        says: the reason in a warning where states are kept together; "" for no warning.

    Returns:
        The plan, the graph that it splits, and the partitions.
    """
    for _ in range(2):
        plan = make(request)
        planned, planned_memory = planned_with_memory(captured, memory, plan)
        partitions = split_stages(planned, plan, planned_memory)
        apart = _touched_apart(memory, plan, partitions, place)
        if not apart:
            return plan, planned, partitions
        if says:
            warnings.warn(f"{', '.join(apart)}: {says}", PartitionWarning, stacklevel=2)
        request = replace(request, keep_together=(*request.keep_together, *apart.values()))
    raise AssertionError("the planner took nodes apart that it was to keep together")


def _touched_apart(
    memory: GraphMemory, plan: Plan, partitions: Sequence[PartitionGraph], place: Callable[[Partition], Hashable]
) -> dict[str, tuple[str, ...]]:
    """Return the states that several places take, each with the nodes that touch it."""
    places: dict[str, set[Hashable]] = {}
    for planned, partition in zip(plan.partitions, partitions, strict=True):
        for node in partition.inputs:
            if node.name in memory.written:
                places.setdefault(node.name, set()).add(place(planned))
    steps = [(step.node, {*step.weights, *step.weight_writes}) for step in memory.steps]
    return {
        name: tuple(node for node, weights in steps if memory.weight_of[name] in weights)
        for name, found in places.items()
        if len(found) > 1
    }
