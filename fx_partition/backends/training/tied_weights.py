"""Weights that several stages read: equal when the stages are made, and equal after each step of the optimizer.

Every stage accumulates a gradient of its own. Their sum is the weight's gradient; it is put into the copy that the
optimizer of each rank holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ..lowering.torch_internals import store_of_world
from ..process_group.transports import Connection, connect

# How often ranks of the world, by their numbers, were connected; the same on all of them.
_connected: Counter[tuple[int, ...]] = Counter()


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
        store = store_of_world()
        assert store is not None
        timeout = store.timeout.total_seconds()  # type: ignore[attr-defined]  # as init_process_group was told
        self._connections: dict[tuple[int, ...], Connection] = {}
        # In one order on all ranks, as each of them waits for the others.
        for ranks in sorted({tie.ranks for tie in self._ties if len(tie.ranks) > 1}):
            members = tuple(everyone[rank] for rank in ranks)
            name = f"fx_partition/ties/{'.'.join(map(str, members))}/{_connected[members]}"
            _connected[members] += 1
            kind = next(self._copies(tie)[0].device.type for tie in self._ties if tie.ranks == ranks)
            place = members.index(dist.get_rank())
            self._connections[ranks] = connect(name, store, members, place, kind, timeout)
        for tie in self._apart():
            self._connections[tie.ranks].broadcast(self._copies(tie)[0].detach(), 0).wait()

    def _apart(self) -> Iterator[Tie]:
        return (tie for tie in self._ties if tie.ranks in self._connections)

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
        for ranks, connection in self._connections.items():
            self._reduce_apart([self._copies(tie)[0] for tie in self._ties if tie.ranks == ranks], connection)

    def _reduce_apart(self, parameters: Sequence[nn.Parameter], connection: Connection) -> None:
        """One transfer for all parameters of one dtype; a last element each counts the ranks that have a gradient."""
        for dtype in dict.fromkeys(p.dtype for p in parameters if p.requires_grad):
            some = [p for p in parameters if p.dtype == dtype and p.requires_grad]
            parts = [p.new_zeros(p.numel() + 1) for p in some]
            for part, p in zip(parts, some, strict=True):
                if p.grad is not None:
                    part[:-1].view(p.shape).copy_(p.grad)
                    part[-1] = 1
            flat = torch.cat(parts)
            connection.allreduce([flat]).wait()
            for part, p in zip(torch.split(flat, [len(part) for part in parts]), some, strict=True):
                p.grad = part[:-1].view(p.shape).clone() if part[-1].item() else None
