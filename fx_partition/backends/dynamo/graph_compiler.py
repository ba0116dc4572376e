"""The way of one Dynamo graph: capture, analyse and plan it, then compile its partitions, or compile it whole.

Each step uses the results of those before it, and no step calls an earlier one::

    capture   `lowering.dynamo_graph`     which inputs are weights, and the fake value of each node
    analyse   `footprint.analyze`         the bytes that each node reads, writes and allocates
    plan      `plan.make_plan`, `microbatch.microbatch_plan`
    split     `lowering.stage`            one graph for each partition
    lower     `lowering.compile_stages`   one compiled function for each distinct stage
    runtime   `inline.runtime`, `microbatch.codegen`; for stages on ranks `ranks.compile` has the last four
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx

from fx_partition.common.errors import PartitionError, UnreadableError
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.shared_inputs import refuse_written_aliases
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan

from ..devices.home_device import moves, warn_of_what_stays
from ..lowering.dynamo_graph import capture_dynamo, is_weight
from ..lowering.graph_context import GraphContext
from ..lowering.saved_inputs import refuse_saved_writes
from ..lowering.torch_internals import RestartAnalysis, compile_graph, inductor_options
from ..measure.stage_allocation import measured_bytes
from ..microbatch.microbatch_plan import MicrobatchPlan
from ..options.backend_options import Options
from ..ranks.compile import compile_ranks
from ..ranks.runtime import RankFunction
from ..weights.lazy_weights import is_lazy, materialize, materialize_on_first_call
from .compiled_graph import CompiledGraph, publish
from .fallback import plan_as_one_partition
from .partition_compiler import compile_partitions
from .plan_sizes import guard_sizes, watch_sizes
from .weight_places import weight_places


def compile_dynamo_graph(
    gm: torch.fx.GraphModule, inputs: Sequence[Any], mode: str | None, options: Options
) -> Callable[..., Any]:
    """Compile a Dynamo graph as the options ask, and publish it with its plan.

    Args:
        gm, inputs, mode: as Dynamo passes them to a backend.

    Returns:
        A function of the graph's inputs, which reads lazy weights when it is first called with them.

    Raises:
        PartitionError: the options cannot be met.
    """
    try:
        patches = inductor_options(mode, options.inductor, any(isinstance(value, torch.SymInt) for value in inputs))
    except ValueError as error:
        raise PartitionError(f'options["inductor"]: {error}') from error
    # Now, as a weight is lazy no more once it is read, and compiling changes the graph.
    placeholders = gm.graph.find_nodes(op="placeholder")
    pairs = enumerate(zip(placeholders, inputs, strict=True))
    weights = [position for position, (node, value) in pairs if is_weight(node, value) or is_lazy(value)]
    function = _compile(gm, inputs, weights, options, patches)
    if isinstance(function, RankFunction):
        weights = [position for position in weights if position in function.reads]
    return materialize_on_first_call(function, weights)


def _compile(
    gm: torch.fx.GraphModule,
    inputs: Sequence[Any],
    weights: Sequence[int],
    options: Options,
    patches: Mapping[str, Any],
) -> Callable[..., Any]:
    if options.places_nothing:
        materialize(inputs)
        return compile_graph(gm, inputs, patches)
    return _GraphCompiler(gm, inputs, [inputs[position] for position in weights], options, patches).run()


class _GraphCompiler:
    """Compiles one graph; keeps the results of the steps that succeeded, for the plan of a fallback."""

    def __init__(
        self,
        gm: torch.fx.GraphModule,
        inputs: Sequence[Any],
        weights: Sequence[torch.Tensor],
        options: Options,
        patches: Mapping[str, Any],
    ) -> None:
        self._gm, self._inputs, self._weights, self._options, self._patches = gm, inputs, weights, options, patches
        self._context: GraphContext | None = None
        self._plan: Plan | None = None

    def run(self) -> Callable[..., Any]:
        try:
            if (function := self._in_partitions()) is not None:
                return self._watched(function)
        except RestartAnalysis:
            raise
        except Exception as error:
            cannot_be_met = isinstance(error, PartitionError) and not isinstance(error, UnreadableError)
            if self._options.ranks or cannot_be_met:  # a rank alone cannot run the graph while the others wait for it
                raise
            self._plan = plan_as_one_partition(error, self._gm.graph, self._context, self._plan, self._options.request)
        return self._watched(self._whole())

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that warns of calls beyond the plan's sizes, if no guard has them compiled again.

        A plan for microbatches has the sizes of a microbatch, which do not follow from those of a call.
        """
        options = self._options
        if self._context is None or self._plan is None or options.ranks or options.replan or options.microbatches != 1:
            return function
        return watch_sizes(function, self._context.captured, self._plan)

    def _in_partitions(self) -> Callable[..., Any] | None:
        """Return the compiled partitions, or None where the graph is to run as one on the device of its model.

        Raises:
            PartitionError: the options cannot be met.
            Exception: of any kind, where the graph cannot be read, planned or compiled in partitions.
        """
        captured = capture_dynamo(self._gm, self._inputs)
        self._weights = list(captured.weights.values())
        context = GraphContext(captured, analyze_memory(captured), self._inputs, self._options, self._patches)
        self._context = context
        if self._options.ranks:
            return _on_ranks(context)
        refuse_saved_writes(captured, context.memory)
        microbatches = MicrobatchPlan.of(context)
        plan = self._plan = microbatches.plan if microbatches else _plan_whole_batch(context)
        if self._options.replan:
            guard_sizes(captured, plan)
        devices = [torch.device(p.device) if p.device else context.home for p in plan.partitions]
        is_moved = moves(captured, devices)
        if is_moved:
            refuse_written_aliases(context.memory)
            warn_of_what_stays(captured)
        materialize(self._inputs)  # all stages run in this process; where no plan can be made, weights stay unread
        if plan.num_partitions <= 1 and not is_moved and not microbatches:
            return None
        return compile_partitions(context, plan, devices, microbatches)

    def _whole(self) -> Callable[..., Any]:
        """Compile the graph as it is, and publish it with its plan."""
        context, plan = self._context, self._plan
        assert plan is not None
        materialize(self._inputs)
        # A partial is cheaper than a call in Python and, unlike what inductor returns, is kept by Dynamo as it is.
        function = functools.partial(compile_graph(self._gm, self._inputs, self._patches))
        if context is not None and plan.num_partitions == 1 and self._options.measures:
            nodes = context.captured.gm.graph.find_nodes(op="placeholder")
            plan = plan.with_allocated((measured_bytes(context, function, nodes, self._inputs, context.home),))
        reads = [(weight, weight.device) for weight in self._weights]
        publish(function, CompiledGraph(plan, (), self._weights, reads=reads), self._options)
        return function


def _plan_whole_batch(context: GraphContext) -> Plan:
    """Plan the graph for the batch whole.

    Where microbatches were asked for and do not pay, the plan has one partition: on a single device more partitions
    cannot help, and a single one is exactly what inductor compiles.
    """
    captured, memory, options = context.captured, context.memory, context.options
    if options.microbatches == 1:
        return make_plan(captured, memory, options.request, weight_places(captured, options.request.devices))
    note = "The batch runs whole, as no microbatches would save enough to pay for their calls."
    return replace(make_plan(captured, memory, options.request.on_one_device()), note=note)


def _on_ranks(context: GraphContext) -> Callable[..., Any]:
    """Compile the stages of this rank, and publish the graph with the stages of all ranks."""
    function, plan, stages = compile_ranks(context)
    publish(function, CompiledGraph(plan, tuple(stages), context.captured.weights.values()), context.options)
    return function
