"""``torch.compile(model, backend="l2partition")``: plan a Dynamo graph, compile each partition, run them in order."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.fx

from fx_partition.common.errors import PartitionError, PartitionWarning, UnreadableError
from fx_partition.passes.capture.capture_model import CapturedGraph
from fx_partition.passes.capture.fake_tensors import no_new_guards, shape_env_of
from fx_partition.passes.capture.graph_hash import fingerprint
from fx_partition.passes.capture.symbolic_sizes import Symbols
from fx_partition.passes.footprint.analyze import gather_facts
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.footprint.shared_inputs import refuse_written_aliases
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.split.extract import planned_graph
from fx_partition.report import render
from fx_partition.report.compiled_plans import PlannedGraph, register
from fx_partition.report.output import write

from .devices.home_device import home_of, moves, warn_of_what_stays
from .inline.malloc_settings import keep_buffers
from .inline.runtime import assemble
from .lowering.compile_stages import CompileOne, lower
from .lowering.dynamo_graph import capture_dynamo, is_weight
from .lowering.fallback import first_line, tell, whole_plan
from .lowering.stage import Boundaries, Stage, cut_stages
from .lowering.torch_internals import (
    RestartAnalysis,
    binds_addresses,
    compile_graph,
    compile_part,
    inductor_options,
    training_patches,
)
from .measure.stage_allocation import measured_bytes
from .microbatch.cutting import MicrobatchPlan
from .options.backend_options import Options
from .ranks.compile import compile_ranks
from .ranks.runtime import RankFunction
from .weights.lazy_weights import fill, fills_first, is_hollow


def l2partition(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend; torch finds it by entry point, so nothing needs importing.

    Args:
        gm, example_inputs: what Dynamo traced; ``gm`` is Dynamo's copy, the model itself is not changed.
        mode: as for ``backend="inductor"``.
        options: see `backend_options.Options` and `request.Request`.

    Returns:
        A function of the graph's inputs.

    Raises:
        PartitionError (a ValueError; torch wraps it in BackendCompilerFailed): options, devices or a budget that
            cannot be met; it names the way out.

    Example::

        >>> model = torch.compile(model, backend="l2partition", options={"cache_bytes": "6MiB"})  # doctest: +SKIP
    """
    places = list(zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True))
    weights = [i for i, (node, value) in enumerate(places) if is_weight(node, value) or is_hollow(value)]
    function = _compile(gm, example_inputs, mode, Options.check(options))
    if isinstance(function, RankFunction):
        weights = [i for i in weights if i in function.reads]
    return fills_first(function, weights)


def _compile(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any], mode: str | None, asked: Options
) -> Callable[..., Any]:
    dynamic = any(isinstance(value, torch.SymInt) for value in example_inputs)
    try:
        patches = inductor_options(mode, asked.inductor, dynamic)
    except ValueError as error:
        raise PartitionError(f'options["inductor"]: {error}') from error
    if asked.places_nothing:
        fill(example_inputs)
        return compile_graph(gm, example_inputs, patches)
    if asked.keep_buffers and asked.reuses_a_cache:
        keep_buffers()
    job = _Job(gm, example_inputs, patches, asked)
    try:
        if (function := job.in_partitions()) is not None:
            return function
    except RestartAnalysis:
        raise
    except Exception as error:
        if asked.ranks or (isinstance(error, PartitionError) and not isinstance(error, UnreadableError)):
            raise
        job.plan_whole(error)
    return job.whole()


class _Job:
    """One graph on its way to a compiled function.

    Attributes:
        plan: None until there is one.
    """

    def __init__(
        self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any], asked: Options
    ) -> None:
        self._gm, self._inputs, self._patches, self._asked = gm, example_inputs, patches, asked
        self._captured: CapturedGraph | None = None
        self._facts: GraphMemory | None = None
        self.plan: Plan | None = None

    def in_partitions(self) -> Callable[..., Any] | None:
        """The compiled partitions; None where the graph is to run whole.

        Raises:
            PartitionError: what the user asked for cannot be.
            Exception: of any kind, where the graph cannot be read, planned or compiled in partitions.
        """
        captured = self._captured = capture_dynamo(self._gm, self._inputs)
        home = home_of(captured)
        facts = self._facts = gather_facts(captured)
        if self._asked.ranks:
            return _run_on_ranks(captured, facts, home, self._inputs, self._patches, self._asked)
        cutting = MicrobatchPlan.of(captured, facts, self._asked, self._inputs)
        plan = self.plan = cutting.plan if cutting else _uncut(captured, facts, self._asked)
        devices = [torch.device(p.device) if p.device else home for p in plan.partitions]
        is_moved = moves(captured, devices)
        if is_moved:
            refuse_written_aliases(facts)
            warn_of_what_stays(captured)
        fill(self._inputs)  # all stages run in this process; a plan that cannot be made leaves them unread
        if plan.num_partitions <= 1 and not is_moved and not cutting:
            return None
        return _compile_stages(captured, facts, plan, devices, self._inputs, self._patches, self._asked, cutting)

    def plan_whole(self, error: Exception) -> None:
        """Let the graph run as one partition because of an error, and say so."""
        if isinstance(error, UnreadableError):
            reason = str(error)
        else:
            apart = self.plan and f"its {self.plan.num_partitions} partitions could not be compiled apart"
            reason = f"{apart or 'it could not be planned'}: {type(error).__name__}{first_line(error)}"
        tell(reason, error)
        graph = fingerprint(self._gm.graph)
        self.plan = whole_plan(reason, graph, self._captured, self._facts, self._asked.request)

    def whole(self) -> Callable[..., Any]:
        """The compiled graph."""
        assert self.plan is not None
        fill(self._inputs)
        # A partial is cheaper than a call in Python and, unlike what inductor returns, is kept by Dynamo as it is.
        function = functools.partial(compile_graph(self._gm, self._inputs, self._patches))
        captured, facts, plan = self._captured, self._facts, self.plan
        if captured is not None and facts is not None and plan.num_partitions == 1 and self._asked.measures:
            nodes = captured.gm.graph.find_nodes(op="placeholder")
            home = home_of(captured)
            plan = plan.with_allocated((measured_bytes(function, nodes, self._inputs, captured, facts, home),))
        weights = captured.weights.values() if captured else filter(_is_module_tensor, self._inputs)
        _publish(function, CompiledGraph(plan, (), weights), self._asked)
        return function


def _is_module_tensor(value: Any) -> bool:
    return isinstance(value, torch.nn.Parameter)


def _uncut(captured: CapturedGraph, facts: GraphMemory, asked: Options) -> Plan:
    """The plan for the batch whole. Where microbatches were to pay and do not, one partition: then nothing is gained by
    more of them on one device, and none is as fast as inductor."""
    if asked.microbatches == 1:
        return make_plan(captured, facts, asked.request)
    note = "The batch runs whole, as no microbatches would save enough to pay for their calls."
    return replace(make_plan(captured, facts, asked.request.on_one_device()), note=note)


def _compile_stages(
    captured: CapturedGraph,
    facts: GraphMemory,
    plan: Plan,
    devices: list[torch.device],
    example_inputs: Sequence[Any],
    patches: Mapping[str, Any],
    asked: Options,
    cutting: MicrobatchPlan | None,
) -> Callable[..., Any]:
    traced = captured = planned_graph(captured, plan)
    if cutting:
        made = cutting.refaked(traced)
        captured, facts = made.captured, replace(facts, symbols=Symbols(hints=made.hints))
    stubs = cut_stages(captured, plan, facts)
    boundaries = Boundaries(captured, stubs)
    stages = [Stage(i, device, stub, boundaries) for i, (stub, device) in enumerate(zip(stubs, devices, strict=True))]
    real = dict(zip(captured.gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True))
    for stage in stages:
        _refuse_training_elsewhere(stage, real)

    lowered = lower(stages, real, _compiler(patches), share=not binds_addresses(patches))
    plan = plan.with_code(tuple(lowered.code))
    if asked.measures:
        measured = {
            i: measured_bytes(
                lowered.compiled[i], stages[i].stub.inputs, lowered.inputs[i], captured, facts, stages[i].device
            )
            for i in lowered.first_of_kind
        }
        plan = plan.with_allocated(tuple(measured[i] for i in lowered.code))
    if cutting:
        function = cutting.assemble(traced, made, stages, lowered.install, patches)
    else:
        function = assemble(captured, stages, lowered.install, facts.written)
    rows = cutting.rows if cutting else None
    _publish(function, CompiledGraph(plan, tuple(stages), captured.weights.values(), rows), asked)
    return function


def _compiler(patches: Mapping[str, Any]) -> CompileOne:
    """What compiles one stage with inductor."""

    def compile_one(module: torch.fx.GraphModule, inputs: Sequence[Any], results: Sequence[Any]) -> Callable[..., Any]:
        with no_new_guards(shape_env_of(results)):
            options = training_patches(results, patches)
        return compile_part(module, inputs, options)

    return compile_one


def _run_on_ranks(
    captured: CapturedGraph,
    facts: GraphMemory,
    home: torch.device,
    example_inputs: Sequence[Any],
    patches: Mapping[str, Any],
    asked: Options,
) -> Callable[..., Any]:
    function, plan, stages = compile_ranks(captured, facts, asked, example_inputs, _compiler(patches), home)
    _publish(function, CompiledGraph(plan, tuple(stages), captured.weights.values()), asked)
    return function


class CompiledGraph(PlannedGraph):
    """One graph that this backend compiled.

    Attributes:
        stages: empty where it runs as one partition.
        rows: the rows of the largest microbatch that it was planned for; None where the batch runs whole.
    """

    def __init__(
        self, plan: Plan, stages: tuple[Stage, ...], weights: Iterable[torch.Tensor], rows: int | None = None
    ) -> None:
        super().__init__(plan, weights)
        self.stages = stages
        self.rows = rows


def _refuse_training_elsewhere(stage: Stage, real: Mapping[torch.fx.Node, Any]) -> None:
    if not torch.is_grad_enabled():
        return
    for node in stage.stub.inputs:
        weight = real.get(node)
        if isinstance(weight, torch.nn.Parameter) and weight.requires_grad and stage.place(weight) != weight.device:
            raise PartitionError(
                f"{node.name} needs a gradient, and stage {stage.index} on {stage.device} would use a copy of it: "
                f"run under torch.no_grad(), or train with all stages on {weight.device}, where it is"
            )


def _publish(function: Callable[..., Any], graph: CompiledGraph, asked: Options) -> None:
    register(function, graph)
    if asked.report is False:
        return
    text = render(graph.plan, asked.report_format)
    if isinstance(asked.report, str):
        try:
            write(text, Path(asked.report), "report=")
        except ValueError as error:  # since `Options.check` looked; the graph is compiled and right
            warnings.warn(f"the report of a graph is not there: {error}", PartitionWarning, stacklevel=2)
    else:
        print(text, file=sys.stderr)
