"""Compute bytes over time: of a graph's values step by step, and of inductor's buffers kernel by kernel.

Both leave out the caller's inputs, which count by the same rule in eager and compiled code. Sums are polynomials of
the shape symbols, so that adding a size costs time for its own terms only.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence

from ..capture.symbolic_sizes import Evaluator, Size, Symbols, Terms, terms
from ..footprint.graph_memory import GraphMemory, Role
from .buffer_reuse import runs, takers
from .kernels import Buffer, Kernels


def _add(total: Terms, size: Size, sign: int = 1) -> None:
    for monomial, coefficient in terms(size).items():
        total[monomial] = total.get(monomial, 0) + sign * coefficient


def resident(memory: GraphMemory, starts: Sequence[int]) -> list[Terms]:
    """Return, for each step, the bytes of the resident values that the step's own partition made."""
    end = len(memory.steps)
    bounds = [*(starts or [0]), end]
    last = {value: t for t, step in enumerate(memory.steps) for value in step.values}
    begins: list[list[Size]] = [[] for _ in range(end + 1)]
    ends: list[list[Size]] = [[] for _ in range(end + 1)]
    for number, value in enumerate(memory.values):
        if value.role is Role.ACTIVATION and number in last:
            stop = bounds[bisect.bisect_right(bounds, value.made_at)]
            begins[value.made_at].append(value.bytes)
            ends[stop if value.returned else min(last[number] + 1, stop)].append(value.bytes)
    total: Terms = {}
    result = []
    for t in range(end):
        for size in begins[t]:
            _add(total, size)
        for size in ends[t]:
            _add(total, size, -1)
        result.append(dict(total))
    return result


def allocated(parts: Iterable[Kernels], num_steps: int, symbols: Symbols) -> list[list[Terms]]:
    """Return, for each step, the bytes that its partition has allocated while each of the step's kernels runs.

    Workspace is included.
    """
    totals: list[list[Terms]] = [[] for _ in range(num_steps)]
    numbers = symbols.bind()
    for kernels in parts:
        sizes = Evaluator([buffer.bytes for buffer in kernels.buffers])(numbers)
        _allocated(kernels, takers(kernels, sizes), totals)
    return totals


def _allocated(kernels: Kernels, took: dict[int, int], totals: list[list[Terms]]) -> None:
    """Append the totals of one partition's kernels to ``totals``; ``took``: as `takers` returns it."""
    taken = set(took.values())
    dying: dict[int, list[Buffer]] = {}
    for number, buffer in enumerate(kernels.buffers):
        if not (buffer.given or buffer.returned or kernels.inside(buffer) or number in taken):
            dying.setdefault(buffer.last, []).append(buffer)
    total: Terms = {}
    of_run = itertools.groupby(enumerate(runs(kernels)), key=lambda pair: pair[1])
    # Loops of one run are one C++ function: all their results are allocated before it, and freed after it.
    for places in ([place for place, _ in run] for _, run in of_run):
        for place in places:
            for number in kernels.kernels[place].makes:
                if number not in took and not kernels.inside(kernels.buffers[number]):
                    _add(total, kernels.buffers[number].bytes)
        while_running = dict(total)
        _add(while_running, kernels.kernels[places[0]].workspace)
        totals[kernels.kernels[places[-1]].step].append(while_running)
        for place in places:
            for buffer in dying.get(place, ()):
                _add(total, buffer.bytes, -1)
