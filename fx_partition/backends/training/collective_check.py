"""Do the same work on all ranks; if it fails or differs on one, raise on all, so that no rank is left waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from fx_partition.common.errors import PartitionError

from ..process_group.consistency import Document, refuse_differences

T = TypeVar("T")


def agree(work: Callable[[], tuple[T, Document]], group: dist.ProcessGroup | None) -> T:
    """Do the same work on every rank of a group and compare the outcome.

    Args:
        work: returns a result and a document that must be the same on all ranks. It must not communicate.
        group: the ranks; None: all. Messages number the ranks within the group.

    Raises:
        PartitionError: the work failed on another rank, or documents differ; the message names the ranks.
        Exception: the exception that the work raised on this rank.
    """
    failure: Exception | None = None
    mine: tuple[str, Document]
    try:
        result, document = work()
        mine = ("", document)
    except Exception as error:  # the other ranks must learn of any error
        failure = error
        mine = (f"{type(error).__name__}: {error}", {})
    outcomes: list[tuple[str, Document]] = [("", {})] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, mine, group=group)
    if failure is not None:
        raise failure
    failed = {rank: text for rank, (text, _) in enumerate(outcomes) if text}
    if failed:
        first = next(iter(failed))
        raise PartitionError(f"rank {', '.join(map(str, failed))} could not make stages; rank {first}: {failed[first]}")
    refuse_differences([document for _, document in outcomes])
    return result
