"""Weights that several stages read: kept equal from the start and after each step of the optimizer.

Every stage accumulates its own gradient. The sum is the weight's gradient; it is put into the copy that the optimizer
of each rank holds.
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

# By the numbers of some ranks in the world: how often they were connected. It is the same on all of these ranks.
_connected: Counter[tuple[int, ...]] = Counter()


@dataclass(frozen=True)
class TiedWeight:
    """One parameter of the model that several stages read.

    Attributes:
        name: one of its names in the model.
        stages: the numbers of the stages.
        ranks: the ranks of these stages within the group, ascending.
    """

    name: str
    stages: tuple[int, ...]
    ranks: tuple[int, ...]


def find_tied_weights(stages: Sequence[nn.Module], ranks: Sequence[int]) -> list[TiedWeight]:
    """Return the tied weights of a model, in the order of their first stages.

    Args:
        stages: the module of each stage of the model, which must hold the model's own parameters.
        ranks: the rank of each stage.
    """
    found: dict[int, tuple[str, list[int]]] = {}
    for index, stage in enumerate(stages):
        for name, parameter in stage.named_parameters():
            found.setdefault(id(parameter), (name, []))[1].append(index)
    return [
        TiedWeight(name, tuple(readers), tuple(sorted({ranks[reader] for reader in readers})))
        for name, readers in found.values()
        if len(readers) > 1
    ]


class TiedWeights:
    """The tied weights of this rank's stages; making it gives all ranks the values of the lowest rank that reads them.

    Args:
        tied: the tied weights of all stages.
        local: the stages of this rank by their index.
        group: the ranks of the pipeline; None: all.
    """

    def __init__(
        self, tied: Sequence[TiedWeight], local: Mapping[int, nn.Module], group: dist.ProcessGroup | None
    ) -> None:
        self._local = local
        self._tied = [weight for weight in tied if any(stage in local for stage in weight.stages)]
        everyone = dist.get_process_group_ranks(group or dist.group.WORLD)
        store = store_of_world()
        assert store is not None
        timeout = store.timeout.total_seconds()  # type: ignore[attr-defined]  # the timeout of init_process_group
        self._connections: dict[tuple[int, ...], Connection] = {}
        # In the same order on all ranks, as each connection waits for all its ranks.
        for ranks in sorted({weight.ranks for weight in self._tied if len(weight.ranks) > 1}):
            members = tuple(everyone[rank] for rank in ranks)
            name = f"fx_partition/ties/{'.'.join(map(str, members))}/{_connected[members]}"
            _connected[members] += 1
            kind = next(self._copies(weight)[0].device.type for weight in self._tied if weight.ranks == ranks)
            rank = members.index(dist.get_rank())
            self._connections[ranks] = connect(name, store, members, rank, kind, timeout)
        for weight in self._on_several_ranks():
            self._connections[weight.ranks].broadcast(self._copies(weight)[0].detach(), 0).wait()

    def _on_several_ranks(self) -> Iterator[TiedWeight]:
        return (weight for weight in self._tied if weight.ranks in self._connections)

    def _copies(self, weight: TiedWeight) -> list[nn.Parameter]:
        return [self._local[stage].get_parameter(weight.name) for stage in weight.stages if stage in self._local]

    def reduce(self) -> None:
        """Put the sum of all gradients into the first copy of each rank, and set the others to None."""
        for weight in self._tied:
            first, *others = self._copies(weight)
            for other in others:
                if other.grad is not None:
                    first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
                    other.grad = None
        for ranks, connection in self._connections.items():
            firsts = [self._copies(weight)[0] for weight in self._tied if weight.ranks == ranks]
            self._reduce_over_ranks(firsts, connection)

    def _reduce_over_ranks(self, parameters: Sequence[nn.Parameter], connection: Connection) -> None:
        """Add up the gradients over ranks, in one transfer for all parameters of a dtype.

        A last element for each parameter counts the ranks that have a gradient: the sum is None where no rank has one.
        """
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
