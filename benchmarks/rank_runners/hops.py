"""Measure the time to bring a tensor from one rank to another and back: bare, by the runtime, and in a compiled call.

name    a round
bare    `dist.send` and `dist.recv` there, the same back
team    the runtime's own `Team.send`, `finish` and `receive` there and back
call    a compiled model of two additions, one a rank, whose result all ranks return, less the same two stages in one
        process: the boundary there, the result back

A hop is half a round. Both ranks measure; the figure is rank 0's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fx_partition.backends.process_group.rank_team import Team
from fx_partition.backends.ranks.runtime import TAGS

from .runners import TIMEOUT_S

WARM_UP = 3
_TAG = TAGS * 1000  # beyond those of compiled graphs


class TwoSums(nn.Module):
    """Two stages with almost no arithmetic and a boundary of ``numel`` float32."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(numel)), nn.Parameter(torch.ones(numel))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x + self.first) + self.second


class Hops:
    """Rounds between rank 0 and rank 1 with a tensor of one size."""

    def __init__(self, nbytes: int) -> None:
        self._rank = dist.get_rank()
        self._tensor = torch.ones(nbytes // 4)
        self._team = Team.current(TIMEOUT_S, torch.device("cpu"))
        model = TwoSums(nbytes // 4).eval()
        self._inline = torch.compile(model, backend="l2partition", options={"devices": ["cpu", "cpu"]})
        ranks = {"devices": "ranks", "timeout": TIMEOUT_S}
        again = TwoSums(nbytes // 4).eval()
        self._ranks = torch.compile(again, backend="l2partition", options=ranks)
        expected = model(self._tensor)
        for run in (self._inline, self._ranks):
            assert torch.allclose(run(self._tensor), expected)
        self._team = Team.current(TIMEOUT_S, torch.device("cpu"))

    def seconds(self, count: int) -> dict[str, float]:
        """Return the seconds of a hop by each name, over ``count`` rounds."""
        rounds = {"bare": self._bare, "team": self._by_team, "call": self._call, "inline": self._in_line}
        found = {name: _timed(function, count) for name, function in rounds.items()}
        inline = found.pop("inline")
        found["call"] -= inline
        return {name: seconds / 2 for name, seconds in found.items()}

    def _bare(self) -> None:
        if self._rank == 0:
            dist.send(self._tensor, 1)
            dist.recv(self._tensor, 1)
        else:
            dist.recv(self._tensor, 0)
            dist.send(self._tensor, 0)

    def _by_team(self) -> None:
        peer = 1 - self._rank
        if self._rank == 0:
            self._team.send(self._tensor, peer, _TAG)
            self._team.finish()
            self._team.post(self._tensor, peer, _TAG).wait()
        else:
            self._team.post(self._tensor, peer, _TAG).wait()
            self._team.send(self._tensor, peer, _TAG)
            self._team.finish()

    def _call(self) -> None:
        self._ranks(self._tensor)

    def _in_line(self) -> None:
        self._inline(self._tensor)


def _timed(function: Callable[[], None], count: int) -> float:
    dist.barrier()
    for _ in range(WARM_UP):
        function()
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count
