"""The workers of `runners` and the ways that they run, as the benchmark sees them: named, and one at a time.

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

from collections.abc import Sequence
from dataclasses import dataclass

from .models import Case
from .processes import Processes
from .runners import MICROBATCHES, work

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


class Crew(Processes):
    """Running workers on two cores; a context manager.

    Args:
        cores: the two.
        usable: the usable bytes of L2, for the automatic way.
    """

    def __init__(self, cores: Sequence[int], usable: int) -> None:
        first, second = cores
        roles = [("piped", None, 0), ("all", None, 0), ("one", first, 0), ("one", second, 1), ("gpipe", first, 0)]
        roles.append(("gpipe", second, 1))
        super().__init__(work, [(*role, usable) for role in roles])

    def build(self, case: Case) -> None:
        """Have all workers build a case, and check their results.

        Raises:
            RuntimeError: a side cannot be built or computes something else; the worker's traceback is in the message.
        """
        self.ask(("build", case))

    def rate(self, name: str, count: int) -> float:
        """Return requests per second for a stream of ``count``."""
        way = WAYS[name]
        each = max(1, count // len(way.workers)) if way.shared else max(MICROBATCHES, count)
        seconds = self.ask(("run", way.side, each), way.workers)
        return sum(each / t for t in seconds) if way.shared else each / max(seconds)

    def latency(self, name: str, count: int) -> float:
        """Median seconds of one request at a time; of one replica, and with the result brought back to the first
        process."""
        way = WAYS[name]
        workers = way.workers[:1] if way.shared else way.workers
        return float(self.ask(("one", way.side, count), workers)[0])
