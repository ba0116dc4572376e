"""The workers of `sides` and the ways that they run, as the benchmark sees them: named, and one at a time.

name                    processes
pipeline, cut           one; the model on both cores
pipeline, copies        the same one; the whole model on each core
pipeline, auto          the same one; as the usable bytes of a core demand
inductor, all cores     one of two threads
inductor, one core      one of one thread, pinned
inductor, replicas      that one and another on the other core, at the same time
torch pipelining        two of one thread, pinned
eager                   that of inductor, all cores
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from .models import Case
from .sides import MICROBATCHES, work

AUTO, CUT, COPIES = "pipeline, auto", "pipeline, cut", "pipeline, copies"
ALL, ONE, REPLICAS = "inductor, all cores", "inductor, one core", "inductor, replicas"
GPIPE, EAGER = "torch pipelining", "eager"
OURS = (AUTO, CUT, COPIES)


@dataclass(frozen=True)
class Way:
    """A way to run: which workers take part, under which name they know it, and whether they share the requests."""

    workers: tuple[int, ...]
    side: str
    shared: bool = False


WAYS = {
    AUTO: Way((0,), "auto"),
    CUT: Way((0,), "cut"),
    COPIES: Way((0,), "copies"),
    ALL: Way((1,), "inductor"),
    ONE: Way((2,), "inductor"),
    REPLICAS: Way((2, 3), "inductor", shared=True),
    GPIPE: Way((4, 5), "gpipe"),
    EAGER: Way((1,), "eager"),
}


class Crew:
    """Live workers on two cores; a context manager.

    Args:
        cores: the two.
        usable: bytes of L2 that the automatic way is told.
    """

    def __init__(self, cores: Sequence[int], usable: int) -> None:
        context = multiprocessing.get_context("spawn")  # nothing is inherited, the allocator's settings are read anew
        self._folder = tempfile.TemporaryDirectory()
        first, second = cores
        roles = [("piped", None, 0), ("all", None, 0), ("one", first, 0), ("one", second, 1), ("gpipe", first, 0)]
        roles.append(("gpipe", second, 1))
        self._connections: list[Connection] = []
        self._processes = []
        for role, core, rank in roles:
            mine, theirs = context.Pipe()
            arguments = (theirs, role, core, rank, usable, f"{self._folder.name}/store")
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            self._connections.append(mine)
            self._processes.append(process)

    def build(self, case: Case) -> None:
        """Have all workers build a case, and check what they compute.

        Raises:
            RuntimeError: a side cannot be built or computes something else; the worker's traceback is in the message.
        """
        self._ask(range(len(self._connections)), ("build", case))

    def rate(self, name: str, count: int) -> float:
        """Requests a second when ``count`` of them are there to be run."""
        way = WAYS[name]
        each = max(1, count // len(way.workers)) if way.shared else max(MICROBATCHES, count)
        seconds = self._ask(way.workers, ("run", way.side, each))
        return sum(each / t for t in seconds) if way.shared else each / max(seconds)

    def latency(self, name: str, count: int) -> float:
        """Median seconds of one request at a time; of one replica, and with the result brought back to the first
        process."""
        way = WAYS[name]
        workers = way.workers[:1] if way.shared else way.workers
        return self._ask(workers, ("one", way.side, count))[0]

    def _ask(self, workers: Sequence[int], command: tuple[Any, ...]) -> list[float]:
        for worker in workers:
            self._connections[worker].send(command)
        answers = [self._connections[worker].recv() for worker in workers]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return answers

    def __enter__(self) -> Crew:
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
