"""All stages of a model before any of them has tensors of its own; the same on every rank."""

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
from fx_partition.passes.capture.capture_model import CapturedGraph, ExampleInputs, Model, capture
from fx_partition.passes.capture.module_members import all_tensors
from fx_partition.passes.footprint.analyze import gather_facts
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import Request

from ..devices.home_device import home_of, refuse_several
from ..lowering.states_together import plan_states_together
from ..lowering.torch_internals import training_patches
from ..process_group.consistency import Document
from ..weights.lazy_weights import fill
from .parameter_copies import Owner
from .placement import check_stages
from .stage_arguments import Entry
from .stage_graphs import StageGraph, stage_graphs
from .stage_interface import Interface, interfaces
from .stage_module import Members, StageModule, build

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


@dataclass(frozen=True)
class Prepared:
    """What every rank knows of all stages; their modules hold the model's own tensors.

    Attributes:
        plan, graphs, modules, interfaces: of all stages in order.
        made: for each stage the fake values that its code makes.
        members: of the whole model.
        entry: reads the arguments of the first stage.
        entry_args: its positional tensors, on the meta device.
        home: where the model's weights are.
        training: the mode that it was traced in.
    """

    plan: Plan
    graphs: Sequence[StageGraph]
    modules: Sequence[StageModule]
    interfaces: Sequence[Interface]
    made: Sequence[Sequence[Any]]
    members: Members
    entry: Entry
    entry_args: Sequence[torch.Tensor]
    home: torch.device
    training: bool

    def document(self, placement: str) -> Document:
        """Equal on ranks whose stages fit together; what explains a difference first."""
        nodes = [partition.nodes for partition in self.plan.partitions]
        document = {
            "version of torch": torch.__version__,
            "placement": placement,
            "number of stages": str(len(self.graphs)),
            "shapes of example_inputs": ", ".join(map(_fact, self.interfaces[0].takes)),
        }
        for module in self.modules:
            document |= {f"weight {name}": _fact(parameter) for name, parameter in module.named_parameters()}
        document["graph"] = self.plan.graph
        document["boundaries of stages"] = hashlib.sha256(repr(nodes).encode()).hexdigest()[:16]
        document["tensors between stages"] = "; ".join(", ".join(map(_fact, i.gives)) for i in self.interfaces)
        return document

    def stages(
        self,
        mine: Sequence[int],
        device: torch.device | None,
        inductor: Mapping[str, Any] | None,
        group: dist.ProcessGroup | None,
    ) -> list[PipelineStage]:
        """Some of the stages, with tensors of their own.

        Args:
            mine: which.
            device: where they run; None: where the model is.
            inductor: options with which they are compiled; None: they are not.
            group: the ranks of the pipeline.
        """
        from .torch_stage import Stage

        found: list[PipelineStage] = []
        for index, module in zip(mine, self._keep(mine, device), strict=True):
            interface = self.interfaces[index]
            if inductor is not None:
                module.compile_code(training_patches(list(map(_trained, self.made[index])), inductor))
            # A stage whose backward cannot be split does all of it where its inputs' part is due, and nothing later.
            # The first has no part for its inputs.
            whole = bool(index) and (inductor is not None or not interface.splits)
            found.append(
                Stage(
                    module,
                    index,
                    len(self.graphs),
                    device or self.home,
                    input_args=interface.takes if index else tuple(self.entry_args),
                    output_args=interface.gives,
                    group=group,
                    dw_builder=_nothing_later if whole else None,
                )
            )
        return found

    def _keep(self, mine: Sequence[int], device: torch.device | None) -> list[StageModule]:
        """The modules of some stages, with tensors of their own."""
        read = {id(tensor) for module in self.modules for tensor in all_tensors(module).values()}
        unread = {name: tensor for name, tensor in self.members.by_name.items() if id(tensor) not in read}
        # Before copies of a weight are made over its memory, which is the checkpoint's until it has been read.
        fill(tensor for index in mine for tensor in all_tensors(self.modules[index]).values())
        if 0 in mine:
            fill(unread.values())
        owner = Owner(self.home, device)
        found = []
        for index in mine:
            source = self.graphs[index]
            if device is not None:
                source = source.moved(self.home, device)
            found.append(
                build(
                    source,
                    self.members,
                    owner.next_stage(),
                    is_last=index == len(self.graphs) - 1,
                    training=self.training,
                    unread=None if index else unread,
                )
            )
            if index == 0:
                self.entry.forget_tensors()
                found[0].read_arguments_with(self.entry)
        return found


def _nothing_later() -> Any:
    return lambda: None


def _fact(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}{' with a gradient' * tensor.requires_grad}"


def prepare(
    model: Model, example: ExampleInputs, request: Request, num_ranks: int, device: torch.device | None
) -> Prepared:
    """Plan a model, cut it, and see what crosses.

    Args:
        model, example: as `api.to_pipeline_stages` is given them.
        request: what is asked of the planner; with ``exactly`` 0 the stages are a multiple of the ranks.
        device: where they run; None: where the model is.

    Raises:
        PartitionError: what cannot be planned or cut.
    """
    if example is None:
        raise PartitionError(
            "example_inputs is None: give the inputs of one microbatch; the positional ones with which "
            "torch.export made a program are program.example_inputs[0]"
        )
    captured = capture(model, example)
    if device is None:
        refuse_several(captured, "a rank runs its stages on one device", "name one with device=")
    facts = gather_facts(captured)
    traced = captured
    plan, captured, stubs = plan_states_together(
        traced, facts, request, lambda asked: _plan(traced, facts, asked, num_ranks), lambda partition: partition.index
    )
    entry = Entry(example)
    graphs = stage_graphs(captured, stubs, entry.leaves)
    members = Members(captured.gm)
    training = captured.gm.training if isinstance(model, torch.export.ExportedProgram) else model.training
    modules = [
        build(graph, members, lambda tensor: tensor, is_last=graph.index == len(graphs) - 1, training=training)
        for graph in graphs
    ]
    tensors = [leaf for leaf in entry.leaves if isinstance(leaf, torch.Tensor)]
    return Prepared(
        plan=plan,
        graphs=graphs,
        modules=modules,
        interfaces=interfaces(modules, tensors),
        made=[[captured.values[node] for node in stub.outputs] for stub in stubs],
        members=members,
        entry=entry,
        entry_args=[torch.empty_like(tensor, device="meta") for tensor in entry.positional],
        home=home_of(captured),
        training=training,
    )


def _trained(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.detach().requires_grad_()


def _plan(captured: CapturedGraph, facts: GraphMemory, request: Request, num_ranks: int) -> Plan:
    plan = make_plan(captured, facts, request)
    if not request.exactly:
        if plan.num_partitions < num_ranks:
            check_stages(plan.num_partitions, num_ranks)
        more = -plan.num_partitions % num_ranks
        if more:
            plan = make_plan(captured, facts, replace(request, exactly=plan.num_partitions + more))
    if request.budget is not None and plan.spill_bytes:
        warnings.warn(
            f"the largest of {plan.num_partitions} stages holds {format_bytes(plan.max_bytes)}, more than cache_bytes; "
            "more stages are smaller",
            PartitionWarning,
            stacklevel=8,
        )
    return plan
