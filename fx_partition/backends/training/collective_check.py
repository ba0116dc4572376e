"""All ranks do the same, or all of them say which does not: no rank is left waiting for one that has failed."""

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
        work: gives a result, and what has to be the same on all ranks. It talks to no other rank.
        group: the ranks; None: all. Messages count them within the group.

    Raises:
        PartitionError: the work failed on another rank, or documents differ; it names the ranks.
        Exception: what the work raised on this rank.
    """
    failure: Exception | None = None
    mine: tuple[str, Document]
    try:
        result, document = work()
        mine = ("", document)
    except Exception as error:  # whatever it is, the others have to hear of it
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
