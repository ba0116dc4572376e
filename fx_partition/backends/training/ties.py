"""Weights that several stages read: equal when the stages are made, and equal after each step of the optimizer.

Every stage accumulates a gradient of its own. Their sum is the weight's gradient; it is put into the copy that the
optimizer of each rank holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Tie:
    """One parameter of the model that several stages read.

    Attributes:
        name: one of its names in the model.
        stages: which stages.
        ranks: where they are, within the group, ascending.
    """

    name: str
    stages: tuple[int, ...]
    ranks: tuple[int, ...]


def find_ties(stages: Sequence[nn.Module], ranks: Sequence[int]) -> list[Tie]:
    """The ties of a model, in the order of its first stages; all of them over the model's own parameters.

    Args:
        stages, ranks: of the whole model; the module of each stage, and where it is.
    """
    found: dict[int, tuple[str, list[int]]] = {}
    for index, stage in enumerate(stages):
        for name, parameter in stage.named_parameters():
            found.setdefault(id(parameter), (name, []))[1].append(index)
    shared = [(name, places) for name, places in found.values() if len(places) > 1]
    return [Tie(name, tuple(places), tuple(sorted({ranks[place] for place in places}))) for name, places in shared]


class Ties:
    """The ties of this rank.

    Args:
        ties: of all stages.
        local: the stages of this rank by their index.
        group: the ranks of the pipeline; None: all.
    """

    def __init__(self, ties: Sequence[Tie], local: Mapping[int, nn.Module], group: dist.ProcessGroup | None) -> None:
        self._local = local
        self._ties = [tie for tie in ties if any(stage in local for stage in tie.stages)]
        everyone = dist.get_process_group_ranks(group or dist.group.WORLD)
        self._groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
        # In one order on all ranks, as each of them waits for the others of a group.
        for ranks in sorted({tie.ranks for tie in self._ties if len(tie.ranks) > 1}):
            members = [everyone[rank] for rank in ranks]
            alone = members == everyone
            self._groups[ranks] = group if alone else dist.new_group(members, use_local_synchronization=True)
        for tie in self._apart():
            parameter = self._copies(tie)[0]
            dist.broadcast(parameter.detach(), everyone[tie.ranks[0]], group=self._groups[tie.ranks])

    def _apart(self) -> Iterator[Tie]:
        return (tie for tie in self._ties if tie.ranks in self._groups)

    def _copies(self, tie: Tie) -> list[nn.Parameter]:
        return [self._local[stage].get_parameter(tie.name) for stage in tie.stages if stage in self._local]

    def reduce(self) -> None:
        """Put the sum of all gradients into the first copy of each rank, and none into the others."""
        for tie in self._ties:
            first, *others = self._copies(tie)
            for other in others:
                if other.grad is not None:
                    first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
                    other.grad = None
        for ranks, group in self._groups.items():
            self._reduce_apart([self._copies(tie)[0] for tie in self._ties if tie.ranks == ranks], group)

    def _reduce_apart(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None) -> None:
        """One transfer for all parameters of one dtype; a last element each counts the ranks that have a gradient."""
        for dtype in dict.fromkeys(p.dtype for p in parameters if p.requires_grad):
            some = [p for p in parameters if p.dtype == dtype and p.requires_grad]
            parts = [p.new_zeros(p.numel() + 1) for p in some]
            for part, p in zip(parts, some, strict=True):
                if p.grad is not None:
                    part[:-1].view(p.shape).copy_(p.grad)
                    part[-1] = 1
            flat = torch.cat(parts)
            dist.all_reduce(flat, group=group)
            for part, p in zip(torch.split(flat, [len(part) for part in parts]), some, strict=True):
                p.grad = part[:-1].view(p.shape).clone() if part[-1].item() else None
