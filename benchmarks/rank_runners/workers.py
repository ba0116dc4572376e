"""Processes that are the ranks of a gloo group on this machine and run commands together."""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from runtimes.models import Case
from runtimes.processes import Processes, alone, check

from .hops import Hops
from .runners import SIDES, RankSide


class RankCrew(Processes):
    """Running ranks; a context manager.

    Args:
        size: how many.
        cores: where they run, in turn: rank r on ``cores[r % len(cores)]``.
    """

    def __init__(self, size: int, cores: Sequence[int]) -> None:
        super().__init__(work, [(rank, size, cores[rank % len(cores)]) for rank in range(size)])

    def build(self, case: Case, microbatches: int) -> None:
        """Have every rank build all sides of a case, and check their results.

        Raises:
            RuntimeError: a side cannot be built or computes something else; the ranks' tracebacks are in the message.
        """
        self.ask(("build", case, microbatches))

    def rate(self, side: str, count: int) -> float:
        """Return calls per second, in a stream of ``count``."""
        return count / max(self.ask(("run", side, count)))

    def latency(self, side: str, count: int) -> float:
        """Return the median seconds of one call at a time, its result brought back to rank 0."""
        return float(self.ask(("one", side, count))[0])

    def build_hops(self, nbytes: int) -> None:
        """Have two ranks prepare to pass a tensor of one size."""
        self.ask(("build hops", nbytes))

    def hops(self, count: int) -> dict[str, float]:
        """Return the seconds of a hop by each way; see `hops`."""
        found: dict[str, float] = self.ask(("hops", count))[0]
        return found


def work(connection: Connection, rank: int, size: int, core: int, store: str) -> None:
    """Run a rank: receive commands and send answers until the command to stop.

    An answer that is a text is a failure.
    """
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
                        check(case, {name: side.first() for name, side in sides.items()})
                    case ("run", name, count):
                        answer = _stream(sides[name], count)
                    case ("one", name, count):
                        answer = alone(sides[name].one, count)
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
    """Return the seconds of a stream of calls, from when all ranks are warm to when this one is done."""
    side.run(max(1, count // 8))
    dist.barrier()
    start = time.perf_counter()
    side.run(count)
    return time.perf_counter() - start
