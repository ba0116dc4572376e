"""Compute the work of each partition of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.split.extract import planned_graph
from fx_partition.passes.timing.partition_work import PartitionWork, work_of_runs
from fx_partition.passes.verify.verdict import check_order


def work_of(captured: CapturedGraph, plan: Plan, bind: Mapping[str, int] | None = None) -> list[PartitionWork]:
    """Return the work of each partition of a plan.

    Args:
        captured: the graph that the plan was made for.
        bind: numbers for symbols; the others have those of the plan.

    Raises:
        PlanMismatchError: the plan was made for another graph, or cannot run this one.
        PartitionError: ``bind`` names no symbol of the graph.
    """
    planned = planned_graph(captured, plan)
    eager = analyze_memory(planned)
    check_order(planned, plan)
    place = {step.node: t for t, step in enumerate(eager.steps)}
    starts = [0, *accumulate(len(partition.nodes) for partition in plan.partitions)]
    own = {name: number for name, number in plan.bindings.items() if number}
    numbers = eager.symbols.bind({**own, **(bind or {})})
    order = [place[name] for partition in plan.partitions for name in partition.nodes]
    ordered = eager.measured_at(numbers).reordered(order)
    return work_of_runs(planned, ordered, starts[:-1], starts, numbers)
