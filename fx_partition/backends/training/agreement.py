"""All ranks do the same, or all of them say which does not: no rank is left waiting for one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from fx_partition.passes.errors import PartitionError

T = TypeVar("T")


def agree(work: Callable[[], tuple[T, str]], group: dist.ProcessGroup | None) -> T:
    """Do the same work on every rank of a group and compare the outcome.

    Args:
        work: gives a result, and a digest that has to be the same on all ranks.
        group: the ranks; None: all.

    Raises:
        PartitionError: the work failed on another rank, or digests differ; it names the ranks.
        Exception: what the work raised on this rank.
    """
    failure: Exception | None = None
    try:
        result, digest = work()
        mine = ("done", digest)
    except Exception as error:  # whatever it is, the others have to hear of it
        failure = error
        mine = ("failed", f"{type(error).__name__}: {error}")
    outcomes: list[tuple[str, str]] = [("", "")] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, mine, group=group)
    if failure is not None:
        raise failure
    failed = {rank: text for rank, (state, text) in enumerate(outcomes) if state == "failed"}
    if failed:
        first = next(iter(failed))
        raise PartitionError(f"rank {', '.join(map(str, failed))} could not make stages; rank {first}: {failed[first]}")
    differ = [rank for rank, outcome in enumerate(outcomes) if outcome != outcomes[0]]
    if differ:
        raise PartitionError(
            f"rank {', '.join(map(str, differ))} cut the model otherwise than rank 0: give every rank the same model, "
            "example_microbatch and options, and the same version of torch"
        )
    return result
