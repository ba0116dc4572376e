"""torch.distributed.pipelining: the modules before or behind which ``pipeline(split_spec=...)`` splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fx_partition.common.errors import PartitionError
from fx_partition.common.module_paths import heads

from .module_stages import ModuleStages
from .refusals import cut, named

if TYPE_CHECKING:
    from torch.distributed.pipelining import SplitPoint

NAME = "torch.distributed.pipelining"


def split_points(stages: ModuleStages, devices: Sequence[int | str]) -> dict[str, SplitPoint]:
    """Return a split point for each boundary: before the outermost module that begins there, or else behind one.

    Raises:
        PartitionError: no module begins or ends at a boundary, or stages run in another order than the trace.

    Example: ``{"blocks.1": SplitPoint.BEGINNING}``.
    """
    from torch.distributed.pipelining import SplitPoint  # it needs a build of torch with distributed

    _refuse_other_orders(stages)
    runs = stages.runs
    found: dict[str, SplitPoint] = {}
    for place in range(1, len(runs)):
        before, behind = runs[place - 1], runs[place]
        if before.stage == behind.stage:
            continue
        if begins := _module_at(stages, behind.path, before.path, place, 0):
            found[begins] = SplitPoint.BEGINNING
        elif ends := _module_at(stages, before.path, behind.path, place - 1, -1):
            found[ends] = SplitPoint.END
        else:
            common = [head for head in heads(before.path) if head in set(heads(behind.path))]
            raise cut(NAME, common[-1], (before.stage, behind.stage))
    return found


def _module_at(stages: ModuleStages, path: str, other: str, place: int, end: int) -> str:
    """Return the outermost module that holds `path` and not `other`, and whose first or last run is at `place`.

    A module that is called twice is left out: a split point would split at both calls.

    Args:
        end: which of its runs: 0 for the first, -1 for the last.
    """
    others = set(heads(other))
    for head in heads(path):
        if head not in others and head not in stages.called_again and stages.reach_of[head][end] == place:
            return head
    return ""


def _refuse_other_orders(stages: ModuleStages) -> None:
    newest = 0
    for run in stages.runs:
        if run.stage < newest:
            raise PartitionError(
                f"steps of {named(run.path)} run on stage {run.stage} and behind others of stage {newest} in the "
                f"trace, and {NAME} splits in the order of the trace; plan with order=\"trace\""
            )
        newest = run.stage
