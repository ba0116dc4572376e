"""Processes that are the ranks of a gloo group on this machine, and do together what they are told."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from runtimes.models import Case
from runtimes.sides import _TOLERANCE

from .hops import Hops
from .sides import SIDES, RankSide


class RankCrew:
    """Live ranks; a context manager.

    Args:
        size: how many.
        cores: where they run, in turn: rank r on ``cores[r % len(cores)]``.
    """

    def __init__(self, size: int, cores: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")  # nothing is inherited, the allocator's settings are read anew
        self._folder = tempfile.TemporaryDirectory()
        self._connections: list[Connection] = []
        self._processes = []
        for rank, core in zip(range(size), itertools.cycle(cores), strict=False):
            mine, theirs = context.Pipe()
            arguments = (theirs, rank, size, core, f"{self._folder.name}/store")
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            self._connections.append(mine)
            self._processes.append(process)

    def build(self, case: Case, microbatches: int) -> None:
        """Have every rank build all sides of a case; what they compute is checked.

        Raises:
            RuntimeError: a side cannot be built or computes something else; the ranks' tracebacks are in the message.
        """
        self._ask(("build", case, microbatches))

    def rate(self, side: str, count: int) -> float:
        """Calls a second, in a stream of ``count``."""
        return count / max(self._ask(("run", side, count)))

    def latency(self, side: str, count: int) -> float:
        """Median seconds of one call at a time, its result brought back to rank 0."""
        return float(self._ask(("one", side, count))[0])

    def build_hops(self, nbytes: int) -> None:
        """Have two ranks get ready to pass a tensor of so many bytes."""
        self._ask(("build hops", nbytes))

    def hops(self, count: int) -> dict[str, float]:
        """Seconds of a hop by each way; see `hops`."""
        found: dict[str, float] = self._ask(("hops", count))[0]
        return found

    def _ask(self, command: tuple[Any, ...]) -> list[Any]:
        for connection in self._connections:
            connection.send(command)
        answers = [connection.recv() for connection in self._connections]
        failures = [answer for answer in answers if isinstance(answer, str)]
        if failures:
            raise RuntimeError("\n".join(failures))
        return answers

    def __enter__(self) -> RankCrew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            if error is None:
                connection.send(("stop",))
            else:
                process.terminate()
        for process in self._processes:
            process.join()
        self._folder.cleanup()


def work(connection: Connection, rank: int, size: int, core: int, store: str) -> None:
    """A rank's life: commands in, answers out, until it is told to stop. An answer that is a text is a failure."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    warnings.simplefilter("ignore")
    sides: dict[str, RankSide] = {}
    hops: Hops | None = None
    with torch.no_grad():
        while (command := connection.recv())[0] != "stop":
            answer: Any = None
            try:
                match command:
                    case ("build", case, microbatches):
                        torch.compiler.reset()
                        sides = {name: side(case, microbatches) for name, side in SIDES.items()}
                        _check(case, sides)
                    case ("run", name, count):
                        answer = _stream(sides[name], count)
                    case ("one", name, count):
                        answer = _alone(sides[name], count)
                    case ("build hops", nbytes):
                        torch.compiler.reset()
                        hops = Hops(nbytes)
                    case ("hops", count):
                        assert hops is not None
                        answer = hops.seconds(count)
            except Exception:
                answer = f"rank {rank}: {traceback.format_exc()}"
            connection.send(answer)
    dist.destroy_process_group()


def _stream(side: RankSide, count: int) -> float:
    """Seconds of so many calls; from when all ranks are warm to when this one is done."""
    side.run(max(1, count // 8))
    dist.barrier()
    start = time.perf_counter()
    side.run(count)
    return time.perf_counter() - start


def _alone(side: RankSide, count: int) -> float:
    times = []
    for _ in range(count + 3):
        start = time.perf_counter()
        side.one()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def _check(case: Case, sides: dict[str, RankSide]) -> None:
    expected = case.model()(case.requests(1)[0])
    for name, side in sides.items():
        result = side.first()
        if result is not None:
            error = ((result - expected).abs().max() / expected.abs().max()).item()
            assert error < _TOLERANCE[case.dtype], f"{case.name}: {name} differs from eager by {error}"
