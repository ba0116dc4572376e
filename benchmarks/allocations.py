"""Measure what eager PyTorch really allocates on the CPU while named ranges of code run.

The figures come from torch.profiler's memory events, one for each call of torch's CPU allocator, read from the exported
Chrome trace (the public form). A range is a `torch.profiler.record_function`. Memory that a library takes with malloc
(MKL, std::vector inside a kernel), or that a worker thread allocates in a kernel's loop, is not in these events.

Example::

    >>> import torch
    >>> x = torch.ones(1000, 1000)
    >>> def work():
    ...     with record_function("double then add"):
    ...         return x * 2 + 1
    >>> measure(work)
    [Range(name='double then add', peak=8000000, kept=4000000)]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import record_function

from fx_partition.backends.measure.peak_allocation import change, memory_events, recorded

__all__ = ["Range", "RecordedInterpreter", "measure", "measure_calls", "record_function"]


@dataclass(frozen=True)
class Range:
    """One run of a named range.

    Attributes:
        name: the name of its record_function.
        peak: the most bytes that the range had allocated and not yet freed at one time. What was allocated before the
            range began and is freed in it does not count, neither up nor down.
        kept: of these, the bytes still allocated when the range ended: its outputs.
    """

    name: str
    peak: int
    kept: int


def measure(function: Callable[[], Any]) -> list[Range]:
    """Call ``function`` once under the profiler and return the ranges that it entered, in order of their start.

    Warm up before: the first call of an operator may build objects that later calls reuse.
    """
    memory, spans = _record(function)
    return [_replay(name, [m[1:] for m in memory if start <= m[0] <= end]) for start, end, name in spans]


def measure_timeline(function: Callable[[], Any]) -> dict[str, int]:
    """Call ``function`` once and return, for each named range in it, the most bytes alive at one time.

    Bytes count if the call allocated them, in any range.
    """
    memory, spans = _record(function)
    ordered = iter(memory)
    live: dict[int, int] = {}
    total = 0
    pending = next(ordered, None)
    peaks: dict[str, int] = {}
    for start, end, name in spans:
        while pending is not None and pending[0] < start:
            total += change(live, *pending[1:])
            pending = next(ordered, None)
        peak = total
        while pending is not None and pending[0] <= end:
            total += change(live, *pending[1:])
            peak = max(peak, total)
            pending = next(ordered, None)
        peaks[name] = peak
    return peaks


def _record(function: Callable[[], Any]) -> tuple[list[tuple[float, int, int]], list[tuple[float, float, str]]]:
    """Return the memory events (time, address, bytes) and the named ranges (start, end, name) of one call, in order."""
    events = recorded(function)
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in events
        if event.get("cat") == "user_annotation"
    )
    return memory_events(events, torch.device("cpu")), spans


def _replay(name: str, events: list[tuple[int, int]]) -> Range:
    live: dict[int, int] = {}
    total = peak = 0
    for address, size in events:
        total += change(live, address, size)
        peak = max(peak, total)
    return Range(name, peak, total)


def measure_calls(calls: list[tuple[str, Callable[[], Any]]]) -> list[Range]:
    """Measure each call once after a warm-up, all in one run of the profiler; grad mode is off."""

    def run() -> None:
        for name, call in calls:
            with record_function(name):
                result = call()
            del result

    with torch.no_grad():
        for _, call in calls:
            call()
        return measure(run)


class RecordedInterpreter(torch.fx.Interpreter):
    """Runs a graph with each node in a record_function range of the node's name.

    Values are freed after their last use, as in the compiled graph. ``measure(lambda: RecordedInterpreter(gm).run(x))``
    gives one `Range` a node.
    """

    def run_node(self, n: torch.fx.Node) -> Any:
        with record_function(n.name):
            result = super().run_node(n)
        # Generated code frees an unused value at once; an Interpreter would keep it to the end.
        return result if n.users or n.op == "output" else None
