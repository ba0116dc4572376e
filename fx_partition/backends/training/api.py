"""From a model to the stages of this rank: plan, agree with the other ranks, cut, keep what is this rank's."""

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
from .tied_weights import Tie, Ties, find_ties

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
    """Cut a model into stages for the training schedules of torch.distributed.pipelining; call it on every rank.

    Every rank plans the whole model and keeps the stages that are its own. These hold the model's own parameters (or
    copies on ``device``), so once the model is deleted, a rank has no others.

    Args:
        model: as for `fx_partition.plan`, with the same weights on all ranks; in the mode in which it is to run.
        example_inputs: those of one microbatch: a sequence of positional ones, one tensor, or a mapping of
            keyword inputs. Sizes are static: every microbatch has these shapes.
        cache_bytes: bytes of one device; then there are as many stages as they need, rounded up to a multiple of the
            ranks. Footprints are those of inference.
        num_stages: how many stages, a multiple of the number of ranks. Default: one a rank.
        placement: "loop" (stage s on rank s mod n: all schedules but two), or "v" (back and forth:
            ScheduleZBVZeroBubble and ScheduleDualPipeV, both with two stages a rank).
        group: the ranks of this pipeline, which messages count within it. Default: all.
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
    if dist.get_rank(group) < 0:
        raise PartitionError("this rank is not in group=; call to_pipeline_stages on the ranks of the group alone")

    def make() -> tuple[tuple[Plan, list[PipelineStage], list[Tie]], Document]:
        """All that can fail on one rank alone."""
        num_ranks = dist.get_world_size(group)
        if placement not in PLACEMENTS:
            raise PartitionError(f"placement={placement!r} is not known; choose from {', '.join(PLACEMENTS)}")
        inductor, place = _inductor(compile), _device(device)
        request = _request(cache_bytes, num_stages, num_ranks, options)
        prepared = prepare(model, example_inputs, request, num_ranks, place)
        ranks = [rank_of(stage, num_ranks, placement) for stage in range(len(prepared.graphs))]
        mine = [stage for stage, rank in enumerate(ranks) if rank == dist.get_rank(group)]
        stages = prepared.stages(mine, place, inductor, group)
        return (prepared.plan, stages, find_ties(prepared.modules, ranks)), prepared.document(placement)

    plan, stages, ties = agree(make, group)
    return PipelineStages(plan, stages, Ties(ties, {stage.stage_index: stage.submod for stage in stages}, group))


def _inductor(compile: bool | Mapping[str, Any]) -> dict[str, Any] | None:
    """Inductor's options; None: stages are not compiled."""
    if not isinstance(compile, (bool, Mapping)):
        raise PartitionError(f"compile={compile!r} is neither True, nor False, nor a mapping of inductor's options")
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
        raise PartitionError(f"device={device!r} is no torch device; for example 'cpu' or 'cuda:0'") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise PartitionError(f"device={device!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    return with_index(found)


def _request(
    cache_bytes: CacheBytes | None, num_stages: int | None, num_ranks: int, options: Mapping[str, Any]
) -> Request:
    refused = {"devices", "replicate", "on_shortage"} & set(options)
    if refused:
        raise PartitionError(f"{', '.join(sorted(refused))}: a pipeline's devices are its ranks; say num_stages=")
    if options.get("objective") in TIMED:
        raise PartitionError(
            f'objective={options["objective"]!r} is for inference; stages for training go by bytes, "balanced" or '
            '"traffic"'
        )
    if num_stages is not None and (isinstance(num_stages, bool) or not isinstance(num_stages, int)):
        raise PartitionError(f"num_stages={num_stages!r} is no number of stages")
    if isinstance(cache_bytes, Sequence) and not isinstance(cache_bytes, str):
        raise PartitionError("cache_bytes is a list; stages for training have one size for all ranks")
    wanted = num_stages if num_stages is not None or cache_bytes is not None else num_ranks
    if wanted is not None:
        check_stages(wanted, num_ranks)
    request = Request.check(cache_bytes, wanted if cache_bytes is None else None, **options)
    return replace(request, exactly=wanted or 0)
