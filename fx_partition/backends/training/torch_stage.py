"""The one module that imports torch.distributed.pipelining, which takes seconds: only whoever makes stages waits."""

from __future__ import annotations

from torch.distributed.pipelining import PipelineStage

from fx_partition.common.errors import PartitionError


class Stage(PipelineStage):
    """A stage of torch.distributed.pipelining that knows on which rank the schedule has to put it."""

    def clear_runtime_states(self) -> None:
        """Before each step; a schedule of another placement is refused here, before anything is sent.

        Raises:
            PartitionError: the schedule goes around the ranks otherwise than the stages were placed.
        """
        if self.stage_index_to_group_rank[self.stage_index] != self.group_rank:
            raise PartitionError(
                f"this schedule wants stage {self.stage_index} on rank "
                f"{self.stage_index_to_group_rank[self.stage_index]}, and it is on rank {self.group_rank}: "
                'ScheduleZBVZeroBubble and ScheduleDualPipeV take placement="v", all others placement="loop"'
            )
        super().clear_runtime_states()
