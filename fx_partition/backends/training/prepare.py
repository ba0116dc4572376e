"""Prepare all stages of a model, in the same way on every rank, before any stage has tensors of its own."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from fx_partition.common.errors import PartitionError, PartitionWarning
from fx_partition.common.units import format_bytes
from fx_partition.passes.capture.capture_model import ExampleInputs, Model, capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.module_members import all_tensors
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import Request

from ..devices.home_device import home_of, refuse_several
from ..lowering.states_together import plan_states_together
from ..lowering.torch_internals import training_patches
from ..process_group.consistency import Document
from ..weights.lazy_weights import materialize
from .parameter_copies import ParameterCopies
from .placement import check_stages
from .stage_arguments import ArgumentReader
from .stage_graphs import StageGraph, stage_graphs
from .stage_interface import StageInterface, stage_interfaces
from .stage_module import ModelTensors, StageModule, build

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


@dataclass(frozen=True)
class Prepared:
    """All stages of a model, as every rank knows them; their modules hold the model's own tensors.

    Attributes:
        plan: the plan of the model.
        graphs, modules, interfaces: those of each stage, in order.
        computed: for each stage the fake values that its code computes.
        members: the parameters and buffers of the whole model.
        reader: reads the arguments of the first stage.
        positional_args: the positional tensors of the first stage, on the meta device.
        home: where the model's weights are.
        training: whether the model was traced in training mode.
    """

    plan: Plan
    graphs: Sequence[StageGraph]
    modules: Sequence[StageModule]
    interfaces: Sequence[StageInterface]
    computed: Sequence[Sequence[Any]]
    members: ModelTensors
    reader: ArgumentReader
    positional_args: Sequence[torch.Tensor]
    home: torch.device
    training: bool

    def document(self, placement: str) -> Document:
        """Return texts that are equal on ranks whose stages fit together; likely causes of a difference come first."""
        nodes = [partition.nodes for partition in self.plan.partitions]
        document = {
            "version of torch": torch.__version__,
            "placement": placement,
            "number of stages": str(len(self.graphs)),
            "shapes of example_inputs": ", ".join(map(_describe, self.interfaces[0].inputs)),
        }
        for module in self.modules:
            document |= {f"weight {name}": _describe(parameter) for name, parameter in module.named_parameters()}
        document["graph"] = self.plan.graph
        document["boundaries of stages"] = hashlib.sha256(repr(nodes).encode()).hexdigest()[:16]
        document["tensors between stages"] = "; ".join(", ".join(map(_describe, i.outputs)) for i in self.interfaces)
        return document

    def stages(
        self,
        mine: Sequence[int],
        device: torch.device | None,
        inductor: Mapping[str, Any] | None,
        group: dist.ProcessGroup | None,
    ) -> list[PipelineStage]:
        """Return some of the stages, with tensors of their own.

        Args:
            mine: the numbers of the stages.
            device: where they run; None: where the model is.
            inductor: the options to compile them with; None: do not compile.
            group: the ranks of the pipeline.
        """
        from .torch_stage import PlacedStage

        found: list[PipelineStage] = []
        for index, module in zip(mine, self._keep(mine, device), strict=True):
            interface = self.interfaces[index]
            if inductor is not None:
                module.compile_code(training_patches(list(map(_trained, self.computed[index])), inductor))
            # A schedule may split a backward: first for the inputs, later for the weights. A stage that cannot be split
            # runs its whole backward the first time. The first stage has no gradients of inputs: nothing to split.
            whole = bool(index) and (inductor is not None or not interface.splits)
            found.append(
                PlacedStage(
                    module,
                    index,
                    len(self.graphs),
                    device or self.home,
                    input_args=interface.inputs if index else tuple(self.positional_args),
                    output_args=interface.outputs,
                    group=group,
                    dw_builder=_nothing_later if whole else None,
                )
            )
        return found

    def _keep(self, mine: Sequence[int], device: torch.device | None) -> list[StageModule]:
        """Return the modules of some stages, with tensors of their own."""
        read = {id(tensor) for module in self.modules for tensor in all_tensors(module).values()}
        unread = {name: tensor for name, tensor in self.members.by_name.items() if id(tensor) not in read}
        # Read weights from the checkpoint first: until then their memory is not the one that stages will share.
        materialize(tensor for index in mine for tensor in all_tensors(self.modules[index]).values())
        if 0 in mine:
            materialize(unread.values())
        copies = ParameterCopies(self.home, device)
        found = []
        for index in mine:
            source = self.graphs[index]
            if device is not None:
                source = source.moved(self.home, device)
            found.append(
                build(
                    source,
                    self.members,
                    copies.next_stage(),
                    is_last=index == len(self.graphs) - 1,
                    training=self.training,
                    unread=None if index else unread,
                )
            )
            if index == 0:
                self.reader.forget_tensors()
                found[0].read_arguments_with(self.reader)
        return found


def _nothing_later() -> Any:
    return lambda: None


def _describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}{' with a gradient' * tensor.requires_grad}"


def prepare(
    model: Model, example: ExampleInputs, request: Request, num_ranks: int, device: torch.device | None
) -> Prepared:
    """Plan a model, split it, and find the tensors that cross between stages.

    Args:
        model, example: the arguments of `api.to_pipeline_stages`.
        request: the request to the planner. If its ``exactly`` is 0, the number of stages is rounded up to a multiple
            of the ranks.
        num_ranks: the number of ranks.
        device: where the stages run; None: where the model is.

    Raises:
        PartitionError: the model cannot be planned or split.
    """
    if example is None:
        raise PartitionError(
            "example_inputs is None: give the inputs of one microbatch; an exported program has its positional example "
            "inputs in program.example_inputs[0]"
        )
    captured = capture(model, example)
    if device is None:
        refuse_several(captured, "a rank runs its stages on one device", "name one with device=")
    memory = analyze_memory(captured)
    traced = captured
    plan, captured, partitions = plan_states_together(
        traced,
        memory,
        request,
        lambda asked: _plan(traced, memory, asked, num_ranks),
        lambda partition: partition.index,
    )
    reader = ArgumentReader(example)
    graphs = stage_graphs(captured, partitions, reader.leaves)
    members = ModelTensors(captured.gm)
    training = captured.gm.training if isinstance(model, torch.export.ExportedProgram) else model.training
    modules = [
        build(graph, members, lambda tensor: tensor, is_last=graph.index == len(graphs) - 1, training=training)
        for graph in graphs
    ]
    tensors = [leaf for leaf in reader.leaves if isinstance(leaf, torch.Tensor)]
    return Prepared(
        plan=plan,
        graphs=graphs,
        modules=modules,
        interfaces=stage_interfaces(modules, tensors),
        computed=[[captured.values[node] for node in partition.outputs] for partition in partitions],
        members=members,
        reader=reader,
        positional_args=[torch.empty_like(tensor, device="meta") for tensor in reader.positional],
        home=home_of(captured),
        training=training,
    )


def _trained(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.detach().requires_grad_()


def _plan(captured: CapturedGraph, memory: GraphMemory, request: Request, num_ranks: int) -> Plan:
    plan = make_plan(captured, memory, request)
    if not request.exactly:
        if plan.num_partitions < num_ranks:
            check_stages(plan.num_partitions, num_ranks)
        more = -plan.num_partitions % num_ranks
        if more:
            plan = make_plan(captured, memory, replace(request, exactly=plan.num_partitions + more))
    if request.budget is not None and plan.spill_bytes:
        warnings.warn(
            f"the largest of {plan.num_partitions} stages holds {format_bytes(plan.max_bytes)}, more than cache_bytes; "
            "more stages are smaller",
            PartitionWarning,
            stacklevel=8,
        )
    return plan
