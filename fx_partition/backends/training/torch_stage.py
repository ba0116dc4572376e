"""The only module that imports torch.distributed.pipelining: that takes seconds, so it waits until stages are made."""

from __future__ import annotations

from torch.distributed.pipelining import PipelineStage

from fx_partition.common.errors import PartitionError


class PlacedStage(PipelineStage):
    """A stage of torch.distributed.pipelining that refuses a schedule which places it on another rank."""

    def clear_runtime_states(self) -> None:
        """Check the schedule's placement, before each step and before anything is sent.

        Raises:
            PartitionError: the schedule expects this stage on another rank.
        """
        if self.stage_index_to_group_rank[self.stage_index] != self.group_rank:
            raise PartitionError(
                f"this schedule expects stage {self.stage_index} on rank "
                f"{self.stage_index_to_group_rank[self.stage_index]}, and it is on rank {self.group_rank}: "
                'ScheduleZBVZeroBubble and ScheduleDualPipeV take placement="v", all others placement="loop"'
            )
        super().clear_runtime_states()
