"""Bytes over time: of the values of facts step by step, and of the buffers of kernels moment by moment.

Both leave out what the caller passes in, which counts by one rule in either. Sums are kept as polynomials of the shape
symbols, so that adding a size costs its own terms and not the sum's.
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


def resident(facts: GraphMemory, starts: Sequence[int]) -> list[Terms]:
    """Bytes of the values that are resident at each step and that its own partition made."""
    end = len(facts.steps)
    bounds = [*(starts or [0]), end]
    last = {value: t for t, step in enumerate(facts.steps) for value in step.values}
    begins: list[list[Size]] = [[] for _ in range(end + 1)]
    ends: list[list[Size]] = [[] for _ in range(end + 1)]
    for number, value in enumerate(facts.values):
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
    """Bytes that a partition has allocated while each of its kernels runs, workspace included, by the kernel's step."""
    moments: list[list[Terms]] = [[] for _ in range(num_steps)]
    numbers = symbols.bind()
    for kernels in parts:
        sizes = Evaluator([buffer.bytes for buffer in kernels.buffers])(numbers)
        _allocated(kernels, takers(kernels, sizes), moments)
    return moments


def _allocated(kernels: Kernels, took: dict[int, int], moments: list[list[Terms]]) -> None:
    taken = set(took.values())
    dying: dict[int, list[Buffer]] = {}
    for number, buffer in enumerate(kernels.buffers):
        if not (buffer.given or buffer.returned or kernels.inside(buffer) or number in taken):
            dying.setdefault(buffer.last, []).append(buffer)
    total: Terms = {}
    of_run = itertools.groupby(enumerate(runs(kernels)), key=lambda pair: pair[1])
    for places in ([place for place, _ in run] for _, run in of_run):
        for place in places:
            for number in kernels.kernels[place].makes:
                if number not in took and not kernels.inside(kernels.buffers[number]):
                    _add(total, kernels.buffers[number].bytes)
        moment = dict(total)
        _add(moment, kernels.kernels[places[0]].workspace)
        moments[kernels.kernels[places[-1]].step].append(moment)
        for place in places:
            for buffer in dying.get(place, ()):
                _add(total, buffer.bytes, -1)
