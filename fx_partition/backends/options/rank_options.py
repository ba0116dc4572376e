"""The options of the distributed runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from fx_partition.common.errors import PartitionError

OUTPUTS = ("all", "last")


@dataclass(frozen=True)
class RankOptions:
    """The options of ``devices="ranks"``.

    Attributes:
        size: the number of ranks.
        group: the process group of the ranks; None: all ranks.
        output: the ranks that return the results: "all", or "last", the rank of the last stage; other ranks return None
            for each result.
        timeout: the seconds that a rank waits for another.
        given: all options as the user gave them, to compare them between ranks.
    """

    size: int
    group: dist.ProcessGroup | None
    output: str
    timeout: float
    given: Mapping[str, Any]

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> RankOptions | None:
        """Read the options; None where the devices are not ranks, as the user named others or there is no group.

        Raises:
            PartitionError: a choice that does not exist, or ranks without a process group.
        """
        initialised = dist.is_available() and dist.is_initialized()
        asked = given.get("devices") == "ranks"
        if asked and not initialised:
            raise PartitionError(
                'devices="ranks" needs a process group: start the script with torchrun and call '
                "torch.distributed.init_process_group first"
            )
        if not asked and (given.get("devices") is not None or not initialised or dist.get_world_size() == 1):
            for name in ("group", "output", "timeout"):
                if name in given:
                    raise PartitionError(f'{name}= is for devices="ranks"; leave it out')
            return None
        group = given.get("group")
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise PartitionError(
                f"group={group!r} is not a process group of this rank: make one with torch.distributed.new_group on "
                "all ranks, and call the model only on the ranks of the group"
            )
        output, timeout = given.get("output", "all"), given.get("timeout", 60.0)
        if output not in OUTPUTS:
            raise PartitionError(f"output={output!r} is not known; choose from {', '.join(OUTPUTS)}")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
            raise PartitionError(f"timeout={timeout!r} is not a number of seconds above 0; the default is 60")
        if given.get("replicate"):
            raise PartitionError("replicate=True is for fx_partition.pipeline; leave it out with devices=\"ranks\"")
        return cls(dist.get_world_size(group), group, output, float(timeout), given)

    @property
    def names(self) -> tuple[str, ...]:
        """The ranks as devices of a plan."""
        return tuple(f"rank {rank}" for rank in range(self.size))
