"""From a model to the stages of this rank: plan, agree with the other ranks, cut, keep what is this rank's."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from fx_partition.backends.torch_internals import training_patches
from fx_partition.passes.capture import Captured, ExampleInputs, Model, capture
from fx_partition.passes.errors import PartitionError, PartitionWarning
from fx_partition.passes.gather import gather_facts
from fx_partition.passes.plan import Plan
from fx_partition.passes.planning import make_plan
from fx_partition.passes.request import CacheBytes, Request
from fx_partition.passes.sizes import format_bytes
from fx_partition.passes.split import cut, planned_graph

from ..hollow import fill
from ..rewrite import retarget
from .agreement import agree
from .entry import Entry
from .ownership import Owner
from .placement import PLACEMENTS, check_stages, rank_of
from .shapes import Interface, interfaces
from .stage_graphs import StageGraph, stage_graphs
from .stage_module import Members, StageModule, build
from .stages import PipelineStages
from .ties import Ties, find_ties


def to_pipeline_stages(
    model: Model,
    example_microbatch: ExampleInputs,
    cache_bytes: CacheBytes | None = None,
    *,
    num_stages: int | None = None,
    placement: str = "loop",
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
    compile: bool | Mapping[str, Any] = False,
    **options: Any,
) -> PipelineStages:
    """Cut a model into stages for the training schedules of torch.distributed.pipelining; call it on every rank.

    Every rank plans the whole model and keeps the stages that are its own. These hold the model's own parameters (or
    copies on ``device``), so once the model is deleted, a rank has no others.

    Args:
        model: as for `fx_partition.plan`, with the same weights on all ranks; in the mode in which it is to run.
        example_microbatch: the inputs of one microbatch: a sequence of positional ones, one tensor, or a mapping of
            keyword inputs. Sizes are static: every microbatch has these shapes.
        cache_bytes: bytes of one device; then there are as many stages as they need, rounded up to a multiple of the
            ranks. Footprints are those of inference.
        num_stages: how many stages, a multiple of the number of ranks. Default: one a rank.
        placement: "loop" (stage s on rank s mod n: all schedules but two), or "v" (back and forth:
            ScheduleZBVZeroBubble and ScheduleDualPipeV, both with two stages a rank).
        group: the ranks of this pipeline. Default: all.
        device: where this rank runs. Default: where the model's weights are.
        compile: True, or a mapping of inductor's options: each stage is compiled when it first runs.
        options: those of `fx_partition.plan` beside the devices.

    Returns:
        The stages of this rank. A schedule takes ``list(stages)``, or ``stages[0]`` if it runs one a rank.

    Raises:
        PartitionError (a ValueError): no process group, too few stages, what cannot be planned or cut, or ranks that
            disagree. It is raised on every rank, and none is left waiting.

    Notes:
        Dropout draws from each rank's own generator: seed every rank differently once the model is made, or stages on
        different ranks drop alike. Normalisation over a batch sees one microbatch at a time, as with torch's stages.
        ``train()`` and ``eval()`` of a stage are refused where they would change the traced mode.
        A weight that several stages read is trained as one by `PipelineStages.reduce_tied_gradients`.

    Example::

        >>> stages = fx_partition.to_pipeline_stages(model, microbatch, num_stages=4)       # doctest: +SKIP
        >>> schedule = ScheduleInterleaved1F1B(list(stages), 8, loss_fn=loss_fn)            # doctest: +SKIP
        >>> optimizer = torch.optim.AdamW(stages.parameters())                              # doctest: +SKIP
        >>> schedule.step(x) if rank == 0 else schedule.step(target=y, losses=losses)       # doctest: +SKIP
        >>> stages.reduce_tied_gradients()                                                  # doctest: +SKIP
        >>> optimizer.step()                                                                # doctest: +SKIP
    """
    if not dist.is_available() or not dist.is_initialized():
        raise PartitionError(
            "no process group: run this under torchrun, and call torch.distributed.init_process_group() first"
        )
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise PartitionError("this rank is not in group=; call to_pipeline_stages on the ranks of the group alone")

    def prepare() -> tuple[_Prepared, str]:
        if placement not in PLACEMENTS:
            raise PartitionError(f"placement={placement!r} is not known; choose from {', '.join(PLACEMENTS)}")
        if not isinstance(compile, (bool, Mapping)):
            raise PartitionError(f"compile={compile!r} is neither True, nor False, nor a mapping of inductor's options")
        prepared = _prepare(model, example_microbatch, _request(cache_bytes, num_stages, num_ranks, options), num_ranks)
        return prepared, prepared.digest(placement)

    prepared = agree(prepare, group)
    ties = find_ties(prepared.modules, lambda stage: rank_of(stage, num_ranks, placement))
    mine = [i for i in range(len(prepared.graphs)) if rank_of(i, num_ranks, placement) == rank]
    modules = prepared.keep(mine, None if device is None else torch.device(device))
    inductor = compile if isinstance(compile, Mapping) else {}
    from .stage import Stage

    stages = []
    for index, module in zip(mine, modules, strict=True):
        interface = prepared.interfaces[index]
        if compile:
            module.compile_code(training_patches(prepared.made[index], inductor))
        # A stage whose backward cannot be split does all of it where its inputs' part is due, and nothing later. The
        # first has no part for its inputs.
        whole = bool(index) and (bool(compile) or not interface.splits)
        stages.append(
            Stage(
                module,
                index,
                len(prepared.graphs),
                prepared.home if device is None else torch.device(device),
                input_args=tuple(prepared.entry_args) if index == 0 else interface.takes,
                output_args=interface.gives,
                group=group,
                dw_builder=_nothing_later if whole else None,
            )
        )
    return PipelineStages(prepared.plan, stages, Ties(ties, dict(zip(mine, modules, strict=True)), group))


def _nothing_later() -> Any:
    return lambda: None


def _request(
    cache_bytes: CacheBytes | None, num_stages: int | None, num_ranks: int, options: Mapping[str, Any]
) -> Request:
    refused = {"devices", "replicate", "on_shortage"} & set(options)
    if refused:
        raise PartitionError(f"{', '.join(sorted(refused))}: a pipeline's devices are its ranks; say num_stages=")
    if num_stages is not None and (isinstance(num_stages, bool) or not isinstance(num_stages, int)):
        raise PartitionError(f"num_stages={num_stages!r} is no number of stages")
    if isinstance(cache_bytes, Sequence) and not isinstance(cache_bytes, str):
        raise PartitionError("cache_bytes is a list; stages for training have one size for all ranks")
    wanted = num_stages if num_stages is not None or cache_bytes is not None else num_ranks
    if wanted is not None:
        check_stages(wanted, num_ranks)
    request = Request.check(cache_bytes, wanted if cache_bytes is None else None, **options)
    return replace(request, exactly=wanted or 0)


@dataclass(frozen=True)
class _Prepared:
    """What every rank knows of all stages; their modules hold the model's own tensors.

    Attributes:
        plan, graphs, modules, interfaces: of all stages in order.
        made: for each stage the values that its code makes, with gradients.
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
    made: Sequence[Sequence[torch.Tensor]]
    members: Members
    entry: Entry
    entry_args: Sequence[torch.Tensor]
    home: torch.device
    training: bool

    def digest(self, placement: str) -> str:
        """Equal on ranks whose stages fit together."""
        facts = [
            placement,
            torch.__version__,
            self.plan.graph,
            [partition.nodes for partition in self.plan.partitions],
            [[_fact(tensor) for tensor in (*i.takes, *i.gives)] for i in self.interfaces],
            [[(name, _fact(p)) for name, p in module.named_parameters()] for module in self.modules],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def keep(self, mine: Sequence[int], device: torch.device | None) -> list[StageModule]:
        """The modules of some stages, with tensors of their own."""
        read = {id(tensor) for module in self.modules for tensor in (*module.parameters(), *module.buffers())}
        unread = {name: tensor for name, tensor in self.members.by_name.items() if id(tensor) not in read}
        # Before copies of a weight are made over its memory, which is the checkpoint's until it has been read.
        fill(tensor for index in mine for tensor in (*self.modules[index].parameters(), *self.modules[index].buffers()))
        if 0 in mine:
            fill(unread.values())
        owner = Owner(device)
        found = []
        for index in mine:
            source = self.graphs[index]
            if device is not None:
                retarget(source.graph, self.home, device)
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


def _fact(tensor: torch.Tensor) -> tuple[list[int], str, bool]:
    return list(tensor.shape), str(tensor.dtype), tensor.requires_grad


def _prepare(model: Model, example: ExampleInputs, request: Request, num_ranks: int) -> _Prepared:
    captured = capture(model, example)
    plan = _plan(captured, request, num_ranks)
    captured = planned_graph(captured, plan)
    stubs = cut(captured, plan)
    entry = Entry(example)
    graphs = stage_graphs(captured, stubs, entry.leaves)
    members = Members(captured.gm)
    training = captured.gm.training if isinstance(model, torch.export.ExportedProgram) else model.training
    modules = [
        build(graph, members, lambda tensor: tensor, is_last=graph.index == len(graphs) - 1, training=training)
        for graph in graphs
    ]
    tensors = [leaf for leaf in entry.leaves if isinstance(leaf, torch.Tensor)]
    homes = [tensor.device for tensor in (*captured.weights.values(), *tensors)]
    return _Prepared(
        plan=plan,
        graphs=graphs,
        modules=modules,
        interfaces=interfaces(modules, tensors),
        made=[[_trained(captured.values[node]) for node in stub.outputs] for stub in stubs],
        members=members,
        entry=entry,
        entry_args=[torch.empty_like(tensor, device="meta") for tensor in entry.positional],
        home=homes[0] if homes else torch.device("cpu"),
        training=training,
    )


def _trained(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.detach().requires_grad_()


def _plan(captured: Captured, request: Request, num_ranks: int) -> Plan:
    facts = gather_facts(captured)
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
            stacklevel=4,
        )
    return plan
