"""Ways to run a model, each in processes that stay alive and run the commands that they receive over a pipe.

A worker builds its sides for a case, checks what they compute against eager, and then runs requests on command. A
turn begins with untimed requests, so that weights are where they will be and clocks are up.
"""

from __future__ import annotations

import itertools
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

import fx_partition
from fx_partition.backends.pipeline import Pipeline, pipeline

from .models import Case
from .processes import alone, check, serve

REQUESTS = 64  # different inputs that a side takes in turn
MICROBATCHES = 16  # requests of one step of torch.distributed.pipelining


class Side(ABC):
    """One way to run a case."""

    @abstractmethod
    def run(self, count: int) -> None:
        """Run ``count`` requests as fast as this way can."""

    @abstractmethod
    def one(self) -> None:
        """Run one request to its end."""

    @abstractmethod
    def outputs(self) -> Tensor | None:
        """Return the result of the first request; None where another process has it."""

    def close(self) -> None:
        """Release its resources."""
        return


class Called(Side):
    """A function, called for one request after the other."""

    def __init__(self, case: Case, function: Callable[[Tensor], Tensor]) -> None:
        self._requests = itertools.cycle(case.requests(REQUESTS))
        self._first = case.requests(1)[0]
        self._function = function

    def run(self, count: int) -> None:
        for x in itertools.islice(self._requests, count):
            self._function(x)

    def one(self) -> None:
        self._function(next(self._requests))

    def outputs(self) -> Tensor:
        return self._function(self._first)


class Piped(Called):
    """Our pipeline: requests in flight."""

    def __init__(self, case: Case, pipe: Pipeline) -> None:
        super().__init__(case, pipe)
        self._pipe = pipe

    def run(self, count: int) -> None:
        for _ in self._pipe.map(itertools.islice(self._requests, count)):
            pass

    def close(self) -> None:
        self._pipe.close()


class GPipe(Side):
    """torch.distributed.pipelining with half the blocks on each of two processes, compiled by inductor."""

    def __init__(self, case: Case) -> None:
        blocks = case.model()
        half = len(blocks) // 2
        self._rank = dist.get_rank()
        module = torch.compile(blocks[:half] if self._rank == 0 else blocks[half:])
        requests = case.requests(REQUESTS)
        self._answer = torch.empty_like(requests[0])
        whole = [torch.cat(requests[i : i + MICROBATCHES]) for i in range(0, REQUESTS, MICROBATCHES)]
        self._steps, self._requests = itertools.cycle(whole), itertools.cycle(requests)
        device = torch.device("cpu")
        schedules = [
            ScheduleGPipe(
                PipelineStage(module, self._rank, 2, device, input_args=requests[0], output_args=requests[0]), count
            )
            for count in (MICROBATCHES, 1)
        ]
        self._many, self._one = schedules

    def run(self, count: int) -> None:
        for x in itertools.islice(self._steps, count // MICROBATCHES):
            self._step(self._many, x)

    def one(self) -> None:
        result = self._step(self._one, next(self._requests))
        if result is None:
            dist.recv(self._answer, 1)
        else:
            dist.send(result, 0)

    def outputs(self) -> Tensor | None:
        result = self._step(self._many, next(self._steps))
        return None if result is None else result[: len(self._answer)]

    def _step(self, schedule: ScheduleGPipe, x: Tensor) -> Tensor | None:
        result: Tensor | None = schedule.step(x) if self._rank == 0 else schedule.step()
        return result


def inductor_on_one(case: Case) -> dict[str, Side]:
    return {"inductor": Called(case, torch.compile(case.model()))}


def on_all(case: Case) -> dict[str, Side]:
    return {"inductor": Called(case, torch.compile(case.model())), "eager": Called(case, case.model())}


def piped(case: Case, usable: int) -> dict[str, Side]:
    """The model spread over all devices, a copy on each, and what its size against the usable bytes makes of it."""
    sides: dict[str, Side] = {}
    made: dict[Any, Side] = {}
    for name, budget in (("cut", None), ("copies", "1GiB"), ("auto", usable)):
        model, example = case.model(), case.requests(1)[0]
        plan = fx_partition.plan(model, example, cache_bytes=budget, devices=2, replicate=True)
        key = tuple((partition.nodes, partition.replicas) for partition in plan.partitions)
        if key not in made:
            made[key] = Piped(case, pipeline(model, example, cache_bytes=budget))
        sides[name] = made[key]
    return sides


def work(connection: Connection, role: str, core: int | None, rank: int, usable: int, store: str) -> None:
    """Run a worker: receive commands and send answers until the command to stop.

    Commands: ("build", case), ("run", side, count) -> seconds, ("one", side, count) -> median seconds, ("stop",).
    """
    if core is not None:
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
    if role == "gpipe":
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    warnings.simplefilter("ignore")
    build: dict[str, Callable[[Case], dict[str, Side]]] = {
        "one": inductor_on_one,
        "all": on_all,
        "piped": lambda case: piped(case, usable),
        "gpipe": lambda case: {"gpipe": GPipe(case)},
    }
    sides: dict[str, Side] = {}

    def answer(what: str, asked: Any, count: int = 0) -> Any:
        nonlocal sides
        if what != "build":
            return _timed(sides[asked], what, count)
        for side in sides.values():
            side.close()
        sides = {}
        torch.compiler.reset()
        sides = build[role](asked)
        return check(asked, {name: side.outputs() for name, side in sides.items()})

    with torch.no_grad():
        serve(connection, answer)
    for side in sides.values():
        side.close()
    if role == "gpipe":
        dist.destroy_process_group()


def _timed(side: Side, what: str, count: int) -> float:
    if what == "one":
        return alone(side.one, count)
    side.run(max(MICROBATCHES, count // 8 // MICROBATCHES * MICROBATCHES))
    start = time.perf_counter()
    side.run(count)
    return time.perf_counter() - start
