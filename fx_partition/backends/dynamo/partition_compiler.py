"""From a plan to a function that runs its partitions: split, lower, and assemble the runtime in the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fx_partition.common.errors import PartitionError
from fx_partition.passes.plan.plan import Plan

from ..inline.runtime import assemble
from ..lowering.compile_stages import Lowered, lower
from ..lowering.graph_context import GraphContext
from ..lowering.stage import Boundaries, Stage, split_stages
from ..measure.stage_allocation import measured_bytes
from ..microbatch.codegen import assemble_microbatches
from ..microbatch.microbatch_plan import MicrobatchPlan
from .compiled_graph import CompiledGraph, publish


def compile_partitions(
    context: GraphContext, plan: Plan, devices: list[torch.device], microbatches: MicrobatchPlan | None
) -> Callable[..., Any]:
    """Compile the partitions of a planned graph, and publish the compiled graph.

    Args:
        devices: the device of each partition.
        microbatches: how the batch is cut; None where it runs whole.

    Raises:
        PartitionError: a stage would train a copy of a parameter.
    """
    context = context.planned(plan)
    graph = microbatches.refake(context.captured) if microbatches else None
    if graph:
        context = context.with_values(graph.refaked)
    partitions = split_stages(context.captured, plan, context.memory)
    boundaries = Boundaries(context.captured, partitions)
    placed = zip(partitions, devices, strict=True)
    stages = [Stage(i, device, partition, boundaries) for i, (partition, device) in enumerate(placed)]
    for stage in stages:
        _refuse_training_elsewhere(stage, context)
    lowered = lower(context, stages)
    plan = plan.with_code(tuple(lowered.code))
    if context.options.measures:
        plan = plan.with_allocated(_allocated(context, lowered))
    if graph:
        function = assemble_microbatches(graph, stages, lowered.install, context.patches)
    else:
        function = assemble(context.captured, stages, lowered.install, context.memory.written)
    rows = microbatches.rows if microbatches else None
    weights = context.captured.weights.values()
    real = context.captured.weights
    reads = [(real[node], stage.device) for stage in stages for node in stage.partition.inputs if node in real]
    publish(function, CompiledGraph(plan, tuple(stages), weights, rows, reads), context.options)
    return function


def _allocated(context: GraphContext, lowered: Lowered) -> tuple[int | None, ...]:
    """Return the bytes that each stage allocates; stages that share code are measured once."""
    measured = {}
    for i in lowered.first_of_kind:
        stage = lowered.stages[i]
        nodes = stage.partition.inputs
        measured[i] = measured_bytes(context, lowered.compiled[i], nodes, lowered.inputs[i], stage.device)
    return tuple(measured[i] for i in lowered.code)


def _refuse_training_elsewhere(stage: Stage, context: GraphContext) -> None:
    if not torch.is_grad_enabled():
        return
    real = context.real
    for node in stage.partition.inputs:
        weight = real.get(node)
        if isinstance(weight, torch.nn.Parameter) and weight.requires_grad and stage.place(weight) != weight.device:
            raise PartitionError(
                f"{node.name} needs a gradient, and stage {stage.index} on {stage.device} would use a copy of it: "
                f"run under torch.no_grad(), or train with all stages on {weight.device}, where it is"
            )
