"""Two ways to run a model on the ranks of a process group, with the same stages' sizes, threads and microbatches.

A side is the same on every rank: each calls it as often, rank 0 has the inputs, and the last rank has the results.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.distributed as dist
from runtimes.models import Case
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

REQUESTS = 16  # different inputs that a side takes in turn
TIMEOUT_S = 300


class RankSide(ABC):
    """One way to run a case on all ranks.

    Args:
        case: its batch is that of a call.
        microbatches: into how many parts a call is cut.
    """

    def __init__(self, case: Case, microbatches: int) -> None:
        self._rank, self._last = dist.get_rank(), dist.get_world_size() - 1
        self._first = case.requests(1)[0]
        self._requests: Iterator[Tensor] = itertools.cycle(case.requests(REQUESTS))
        self._answer = torch.empty_like(self._first)
        self._microbatches = microbatches

    @abstractmethod
    def call(self, x: Tensor) -> Tensor | None:
        """Run this rank's part of one call; return the result on the last rank."""

    def run(self, count: int) -> None:
        """Run ``count`` calls as fast as possible; the first rank does not wait for the last."""
        for x in itertools.islice(self._requests, count):
            self.call(x)

    def one(self) -> None:
        """Run one call and bring its result back to rank 0."""
        result = self.call(next(self._requests))
        if self._rank == self._last:
            assert result is not None
            dist.send(result, 0)
        elif self._rank == 0:
            dist.recv(self._answer, self._last)

    def first(self) -> Tensor | None:
        """Return the result of the first request, on the last rank."""
        return self.call(self._first)


class Ranks(RankSide):
    """``torch.compile(model, backend="l2partition", options={"devices": "ranks"})``."""

    def __init__(self, case: Case, microbatches: int) -> None:
        super().__init__(case, microbatches)
        options = {"devices": "ranks", "output": "last", "timeout": TIMEOUT_S}
        if microbatches > 1:
            options["microbatches"] = microbatches
            torch._dynamo.mark_dynamic(self._first, 0)
        self._model = torch.compile(case.model(), backend="l2partition", options=options)

    def call(self, x: Tensor) -> Tensor | None:
        result: Tensor | None = self._model(x)
        return result


class GPipe(RankSide):
    """torch.distributed.pipelining: equal runs of blocks, compiled by inductor, under `ScheduleGPipe`."""

    def __init__(self, case: Case, microbatches: int) -> None:
        super().__init__(case, microbatches)
        module = torch.compile(even_part(case.model(), self._rank, self._last + 1))
        part = self._first.chunk(microbatches)[0].clone()
        device = torch.device("cpu")
        stage = PipelineStage(module, self._rank, self._last + 1, device, input_args=part, output_args=part)
        self._schedule = ScheduleGPipe(stage, microbatches)

    def call(self, x: Tensor) -> Tensor | None:
        result: Tensor | None = self._schedule.step(x) if self._rank == 0 else self._schedule.step()
        return result


SIDES: dict[str, type[RankSide]] = {"l2partition": Ranks, "torch pipelining": GPipe}


def even_part(blocks: nn.Sequential, rank: int, size: int) -> nn.Sequential:
    """Return a rank's run of blocks; all ranks have equally many."""
    each, left = divmod(len(blocks), size)
    assert not left, f"{len(blocks)} blocks are not divided evenly by {size} ranks"
    return blocks[rank * each : (rank + 1) * each]
