"""From a model to the stages of this rank: plan, split, agree with the other ranks, keep this rank's stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.capture_model import ExampleInputs, Model
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import TIMED, CacheBytes, Request

from ..devices.home_device import with_index
from ..lowering.torch_internals import inductor_options
from ..process_group.consistency import Document
from .collective_check import agree
from .pipeline_stages import PipelineStages
from .placement import PLACEMENTS, check_stages, rank_of
from .prepare import prepare
from .tied_weights import TiedWeight, TiedWeights, find_tied_weights

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


def to_pipeline_stages(
    model: Model,
    example_inputs: ExampleInputs,
    *,
    cache_bytes: CacheBytes | None = None,
    num_stages: int | None = None,
    placement: str = "loop",
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
    compile: bool | Mapping[str, Any] = False,
    **options: Any,
) -> PipelineStages:
    """Split a model into stages for the training schedules of torch.distributed.pipelining; call it on every rank.

    Every rank plans the whole model and keeps its own stages. They hold the model's own parameters (or copies on
    ``device``), so once the model is deleted, a rank holds no other parameters.

    Args:
        model: see `fx_partition.plan`; with the same weights on all ranks, and in the mode in which it will run.
        example_inputs: the inputs of one microbatch: a sequence of positional inputs, one tensor, or a mapping of
            keyword inputs. Sizes are static: every microbatch must have these shapes.
        cache_bytes: the budget of one device. The number of stages follows from it, rounded up to a multiple of the
            number of ranks. Footprints are those of inference.
        num_stages: the number of stages, a multiple of the number of ranks. Default: one for each rank.
        placement: "loop" (stage s on rank s mod n: for all schedules but two), or "v" (back and forth, for
            ScheduleZBVZeroBubble and ScheduleDualPipeV, both with two stages for each rank).
        group: the ranks of this pipeline; messages number the ranks within it. Default: all ranks.
        device: where this rank runs. Default: where the model's weights are.
        compile: True, or a mapping of inductor's options: compile each stage when it first runs.
        options: the options of `fx_partition.plan` that do not concern devices.

    Returns:
        The stages of this rank. A schedule takes ``list(stages)``, or ``stages[0]`` if it runs one stage on each rank.

    Raises:
        PartitionError (a ValueError): there is no process group, there are too few stages, the model cannot be planned
            or split, or the inputs of ranks differ. It is raised on every rank, so none is left waiting.

    Notes:
        Dropout draws from each rank's own generator: seed every rank differently once the model is made, or stages on
        different ranks drop the same elements. Normalisation over a batch sees one microbatch at a time, as with
        torch's stages. ``train()`` and ``eval()`` of a stage raise an error where they would change the traced mode.
        `PipelineStages.reduce_tied_gradients` trains a weight that several stages read as one weight.

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
    if dist.get_rank(group) < 0:
        raise PartitionError("this rank is not in group=; call to_pipeline_stages only on the ranks of the group")

    def make() -> tuple[tuple[Plan, list[PipelineStage], list[TiedWeight]], Document]:
        """Do the work that may fail on one rank only, before any communication."""
        num_ranks = dist.get_world_size(group)
        if placement not in PLACEMENTS:
            raise PartitionError(f"placement={placement!r} is unknown; choose from {', '.join(PLACEMENTS)}")
        inductor, target = _inductor(compile), _device(device)
        request = _request(cache_bytes, num_stages, num_ranks, options)
        prepared = prepare(model, example_inputs, request, num_ranks, target)
        ranks = [rank_of(stage, num_ranks, placement) for stage in range(len(prepared.graphs))]
        mine = [stage for stage, rank in enumerate(ranks) if rank == dist.get_rank(group)]
        stages = prepared.stages(mine, target, inductor, group)
        return (prepared.plan, stages, find_tied_weights(prepared.modules, ranks)), prepared.document(placement)

    plan, stages, tied = agree(make, group)
    local = {stage.stage_index: stage.submod for stage in stages}
    return PipelineStages(plan, stages, TiedWeights(tied, local, group))


def _inductor(compile: bool | Mapping[str, Any]) -> dict[str, Any] | None:
    """Return inductor's options; None if stages are not to be compiled."""
    if not isinstance(compile, (bool, Mapping)):
        raise PartitionError(f"compile={compile!r} must be True, False, or a mapping of inductor's options")
    if isinstance(compile, bool):
        return {} if compile else None
    try:
        return inductor_options(None, compile, dynamic=False)
    except ValueError as error:
        raise PartitionError(f"compile=: {error}") from error


def _device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise PartitionError(f"device={device!r} is not a torch device; name one, such as 'cpu' or 'cuda:0'") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise PartitionError(f"device={device!r} does not exist; this machine has {count} CUDA devices")
    return with_index(found)


def _request(
    cache_bytes: CacheBytes | None, num_stages: int | None, num_ranks: int, options: Mapping[str, Any]
) -> Request:
    refused = {"devices", "replicate", "on_shortage"} & set(options)
    if refused:
        names = ", ".join(sorted(refused))
        raise PartitionError(f"{names}: the devices of these stages are the ranks; set num_stages= instead")
    if options.get("objective") in TIMED:
        raise PartitionError(
            f'objective={options["objective"]!r} is for inference; for training choose "balanced" or "traffic"'
        )
    if num_stages is not None and (isinstance(num_stages, bool) or not isinstance(num_stages, int)):
        raise PartitionError(f"num_stages={num_stages!r} must be a whole number of stages")
    if isinstance(cache_bytes, Sequence) and not isinstance(cache_bytes, str):
        raise PartitionError("cache_bytes is a list; give one size, which holds for the devices of all ranks")
    wanted = num_stages if num_stages is not None or cache_bytes is not None else num_ranks
    if wanted is not None:
        check_stages(wanted, num_ranks)
    request = Request.check(cache_bytes, wanted if cache_bytes is None else None, **options)
    return replace(request, exactly=wanted or 0)
