"""The rank of each stage: around the ranks in a loop, or back and forth in the shape of a V."""

from __future__ import annotations

from fx_partition.common.errors import PartitionError

PLACEMENTS = ("loop", "v")


def rank_of(stage: int, num_ranks: int, placement: str) -> int:
    """Return the rank of a stage within its group.

    Example: six stages on two ranks are on 0 1 0 1 0 1 in a loop, and on 0 1 1 0 0 1 in a V.
    """
    turn, position = divmod(stage, num_ranks)
    return num_ranks - 1 - position if placement == "v" and turn % 2 else position


def check_stages(num_stages: int, num_ranks: int) -> None:
    """Refuse a number of stages that schedules cannot place.

    Raises:
        PartitionError: there are fewer stages than ranks, or their number is not a multiple of that of the ranks.
    """
    if num_stages < num_ranks:
        raise PartitionError(
            f"{num_stages} stages for {num_ranks} ranks: each rank needs one; ask for more with num_stages= or a "
            f"smaller cache_bytes=, or give a group= of {num_stages} ranks"
        )
    if num_stages % num_ranks:
        raise PartitionError(
            f"num_stages={num_stages} is not a multiple of the {num_ranks} ranks, and schedules need equally many "
            f"stages on each; use {num_stages // num_ranks * num_ranks} or {-(-num_stages // num_ranks) * num_ranks}"
        )
