"""Estimate the bytes that a call moves between a cache and the memory behind it, to compare schedules.

Terms
-----
schedule
    The parts in which a graph runs, and the number of times that each part runs before the next: once for each
    microbatch, or once for a batch that runs whole.

A tensor whose distance (`timing.reuse_distance`) exceeds the cache is fetched again; if the graph made it, it was
written back before.

Example: ``a = f(x); b = g(a); c = h(b)``, 16 rows of 2 MiB in each value, a cache of 16 MiB. As one batch, ``x`` is
fetched, ``a`` and ``b`` are written and fetched, ``c`` is written: 192 MiB. In 8 microbatches of 2 rows ``a`` and ``b``
stay in the cache, and ``c`` is copied once to join it: 128 MiB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy

from ..capture.symbolic_sizes import Evaluator, Size
from ..footprint.graph_memory import GraphMemory, Role
from ..timing.reuse_distance import ReuseStack


class Traffic:
    """Estimates the traffic of one graph under a schedule.

    Args:
        memory: the memory of the graph in the code that runs it (see `fused_footprint`).
    """

    def __init__(self, memory: GraphMemory) -> None:
        self._memory = memory
        sizes: list[Size] = [value.bytes for value in memory.values]
        for step in memory.steps:
            sizes += step.weights.values()
        self._sizes = Evaluator(sizes)
        self._last = {value: t for t, step in enumerate(memory.steps) for value in step.values}
        self._place = {step.node: t for t, step in enumerate(memory.steps)}

    def of(
        self, parts: Sequence[Sequence[str]], numbers: Mapping[sympy.Symbol, int], repeats: int, cache: int
    ) -> int:
        """Return the bytes that a call moves.

        Args:
            parts: the nodes of each part, in the order in which they run.
            numbers: the sizes of one run.
            repeats: the number of times that each part runs before the next; results of more than one run are joined by
                a copy.
            cache: the bytes of the cache.
        """
        sizes = self._sizes(numbers)
        values, weights = sizes[: len(self._memory.values)], iter(sizes[len(self._memory.values) :])
        read = [dict(zip(step.weights, weights, strict=False)) for step in self._memory.steps]
        runs = ([self._place[name] for name in part] for part in parts)
        return sum(self._part(steps, values, read, repeats, cache) for steps in runs)

    def large(self, numbers: Mapping[sympy.Symbol, int], least: int) -> int:
        """Return the bytes of all values of ``least`` bytes or more that one run makes."""
        made = zip(self._memory.values, self._sizes(numbers), strict=False)
        return sum(size for value, size in made if value.role is Role.ACTIVATION and size >= least)

    def _part(
        self, steps: Sequence[int], values: Sequence[int], read: Sequence[Mapping[int, int]], repeats: int, cache: int
    ) -> int:
        stack = ReuseStack()
        first = self._run(steps, values, read, stack, 0, cache)
        if repeats == 1:
            return first
        again = self._run(steps, values, read, stack, 1, cache)  # all later runs are like the second
        inside = set(steps)
        about = self._memory.values
        touched = {value for t in steps for value in self._memory.steps[t].values}
        joined = sum(values[value] for value in touched if about[value].returned and about[value].made_at in inside)
        return first + (repeats - 1) * again + 2 * repeats * joined

    def _run(
        self,
        steps: Sequence[int],
        values: Sequence[int],
        read: Sequence[Mapping[int, int]],
        stack: ReuseStack,
        run: int,
        cache: int,
    ) -> int:
        """Return the bytes that one run of a part moves; its values are new in each run, its weights are not."""
        moved = 0
        inside = set(steps)
        seen: set[int] = set()
        written: set[int] = set()
        for t in steps:
            for value in self._memory.steps[t].values:
                size, made = values[value], self._memory.values[value].made_at
                distance = stack.touch((run, value), size)
                if value not in seen:
                    seen.add(value)
                    moved += 0 if made == t else size
                elif distance is None or distance > cache:
                    moved += size
                    if made in inside and value not in written:
                        moved += size
                        written.add(value)
            for weight, size in read[t].items():
                distance = stack.touch(weight, size)
                moved += size if distance is None or distance > cache else 0
        for value in seen - written:
            about = self._memory.values[value]
            leaves = about.made_at in inside and (about.returned or self._last[value] not in inside)
            moved += values[value] if leaves else 0
        return moved
