"""Start and stop the processes of a benchmark, send commands, and check results."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor

from fx_partition.hardware.cores import core_groups

from .models import Case

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # of the largest result

C = TypeVar("C", bound="Processes")


class Processes:
    """Running processes that answer commands; a context manager.

    Each runs ``work(connection, *arguments, store)``: a loop that receives a command and sends an answer, a text where
    it failed, until the command is ("stop",). ``store`` is a path for a process group's file.
    """

    def __init__(self, work: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> None:
        context = multiprocessing.get_context("spawn")  # nothing is inherited, the allocator's settings are read again
        self._folder = tempfile.TemporaryDirectory()
        self._connections: list[Connection] = []
        self._processes = []
        for own in arguments:
            mine, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, *own, f"{self._folder.name}/store"), daemon=True)
            process.start()
            self._connections.append(mine)
            self._processes.append(process)

    def ask(self, command: tuple[Any, ...], workers: Sequence[int] | None = None) -> list[Any]:
        """Return the answers of some processes (default: all) to one command.

        Raises:
            RuntimeError: what those that failed say.
        """
        connections = self._connections if workers is None else [self._connections[worker] for worker in workers]
        for connection in connections:
            connection.send(command)
        answers = [connection.recv() for connection in connections]
        failures = [answer for answer in answers if isinstance(answer, str)]
        if failures:
            raise RuntimeError("\n".join(failures))
        return answers

    def __enter__(self: C) -> C:
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


def serve(connection: Connection, answer: Callable[..., Any]) -> None:
    """Answer each command of a connection until ("stop",): ``answer(*command)``, or its traceback where it fails."""
    while (command := connection.recv())[0] != "stop":
        try:
            found = answer(*command)
        except Exception:  # the process that asked raises an error with this text
            found = traceback.format_exc()
        connection.send(found)


def two_cores() -> list[int]:
    """Return a core of each of two groups that do not share a cache; end the program if there are none."""
    groups = core_groups()
    if len(groups) < 2:
        print("two cores with their own caches are needed", file=sys.stderr)
        sys.exit(2)
    return [group[0] for group in groups[:2]]


def alone(call: Callable[[], Any], count: int) -> float:
    """Return the median seconds of one call at a time, after three that do not count."""
    times = []
    for _ in range(count + 3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def check(case: Case, results: Mapping[str, Tensor | None]) -> None:
    """Check that each side's result of the first request is eager's within the tolerance; None: it has none here."""
    expected = case.model()(case.requests(1)[0]).float()
    for name, result in results.items():
        if result is None:
            continue
        assert result.dtype == case.torch_dtype, (name, result.dtype)
        error = ((result.float() - expected).abs().max() / expected.abs().max()).item()
        assert error < TOLERANCE[case.dtype], f"{case.name}: {name} differs from eager by {error}"
