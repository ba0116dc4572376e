"""Programs in several processes, each replaced now and then, and at once where a program ends it."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from .campaign import SeedVerdicts, Task, prepare, try_seed
from .check import Verdict

#: Programs in one process: tracers keep some of what they saw.
CHUNK = 50


def try_in_processes(tasks: Sequence[Task], workers: int) -> Iterator[SeedVerdicts]:
    """What comes of each task, in the order in which they end. A process that ends early is a failure of its task."""
    chunks: queue.SimpleQueue[Sequence[Task] | None] = queue.SimpleQueue()
    for first in range(0, len(tasks), CHUNK):
        chunks.put(tasks[first : first + CHUNK])
    found: queue.SimpleQueue[SeedVerdicts] = queue.SimpleQueue()
    for _ in range(workers):
        chunks.put(None)
        threading.Thread(target=_work, args=(chunks, found), daemon=True).start()
    for _ in tasks:
        yield found.get()


def _work(chunks: queue.SimpleQueue[Sequence[Task] | None], found: queue.SimpleQueue[SeedVerdicts]) -> None:
    while (chunk := chunks.get()) is not None:
        while chunk:
            done, exit_code = _run(chunk, found)
            if done < len(chunk):
                fault = f"the process ended with exit code {exit_code}"
                found.put((chunk[done][0], [Verdict("process", fault=fault, signature=fault)]))
            chunk = chunk[done + 1 :]


def _run(chunk: Sequence[Task], found: queue.SimpleQueue[SeedVerdicts]) -> tuple[int, int | None]:
    """Run tasks in a new process; returns how many were done, and its exit code."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(chunk, sender), daemon=False)
    process.start()
    sender.close()
    done = 0
    try:
        for done in range(1, len(chunk) + 1):  # noqa: B007
            found.put(receiver.recv())
    except EOFError:
        done -= 1
    process.join()
    return done, process.exitcode


def _serve(chunk: Sequence[Task], sender: Connection) -> None:
    prepare()
    for task in chunk:
        sender.send(try_seed(task))
