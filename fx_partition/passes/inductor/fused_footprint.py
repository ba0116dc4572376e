"""Compute a graph's memory as inductor compiles it: results that stay inside one fused kernel take no memory.

This is inductor for CPUs as of torch 2.13 with its default options (no freezing); the other modules of this room follow
its source. The steps, their order and their weights stay as they are. Three things change:

- a value that only its own fused kernel reads has no bytes, and the steps from its maker to its last reader stay
  together, because a boundary between them would make it a buffer again;
- a result takes the storage of a value of the same size that dies at that step, and the steps between stay together;
- the workspace of a step is the most that it has allocated beyond the resident values: the workspace of external
  kernels, operands copied into another layout, statistics of norms, and the sources that a deferred result keeps alive.

Before (sizes in KiB, memory of ``linear(gelu(linear(x)) * 2)``)::

    linear: 64;  gelu: 64;  mul: 64;  linear_1: 64     steps: linear | gelu | mul | linear_1

After::

    linear, gelu and mul share 64;  linear_1: 64       steps: linear gelu mul | linear_1

Example::

    memory, together = fuse(captured, analyze_memory(captured))
    atoms = find_atoms(captured, memory, together=together)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from ..capture.captured_graph import CapturedGraph
from ..capture.symbolic_sizes import Size, Terms, from_terms, undominated
from ..constraints.atoms import ColocationGroup
from ..footprint.graph_memory import ActivationStorage, GraphMemory, NodeMemory, Role
from .buffer_liveness import allocated, resident
from .kernels import Kernels
from .lowering import lower
from .op_trace import Trace, split_trace, trace


def fuse(
    captured: CapturedGraph, memory: GraphMemory, starts: Sequence[int] = ()
) -> tuple[GraphMemory, list[ColocationGroup]]:
    """Return the memory of a graph under inductor, and the steps that must stay together for it to be right.

    The bytes that a partition allocates depend on its boundaries: a value that crosses one is a buffer, in eager's
    layout. So this function has two uses: without ``starts`` for the search of a plan, and with the ``starts`` of a
    plan for the exact bytes of each of its partitions.

    Args:
        captured: the graph.
        memory: its memory as `analyze_memory` returns it, or the same in another order.
        starts: the first step of every partition, ascending from 0; empty before there is a plan.

    Returns:
        The memory of the same steps, and groups for `atoms.find_atoms`. Sizes stay symbolic.
    """
    whole, kernels = _lowered(captured, memory, starts)
    merged, groups = _Merger(memory, whole, kernels, starts).run()
    return _with_workspace(merged, kernels, starts), groups


def compiled(captured: CapturedGraph, memory: GraphMemory, starts: Sequence[int]) -> tuple[GraphMemory, list[int]]:
    """Return the memory of partitions as `fuse` does, and for each step the number of kernels that it begins.

    A loop counts at the step whose result it computes first, whatever is fused into it afterwards.
    """
    whole, kernels = _lowered(captured, memory, starts)
    begun = [0] * len(memory.steps)
    for part in kernels:
        for kernel in part.kernels:
            begun[kernel.step] += 1
    return _with_workspace(_Merger(memory, whole, kernels, starts).run()[0], kernels, starts), begun


def _lowered(captured: CapturedGraph, memory: GraphMemory, starts: Sequence[int]) -> tuple[Trace, list[Kernels]]:
    """Return the trace of the whole graph, and the kernels of each of its partitions."""
    whole = trace(captured, memory)
    parts = [whole] if not starts else split_trace(whole, starts)
    return whole, [lower(part, planned=bool(starts)) for part in parts]


class _Merger:
    """Removes the bytes of values that are not buffers, and gives results the storage of operands that die there."""

    def __init__(self, memory: GraphMemory, whole: Trace, parts: Sequence[Kernels], starts: Sequence[int]) -> None:
        self._memory = memory
        buffers = {storage for kernels in parts for storage in kernels.realised if kernels.is_buffer(storage)}
        self._buffers = {value for storage, value in whole.value_of.items() if storage in buffers}
        external = {kernel.step for kernels in parts for kernel in kernels.kernels if kernel.extent is None}
        self._external_until = [0]  # for each step the number of steps before it that run an external kernel
        for t in range(len(memory.steps)):
            self._external_until.append(self._external_until[-1] + (t in external))
        later = set(starts[1:])
        self._part = list(itertools.accumulate(t in later for t in range(len(memory.steps))))  # each step's partition
        self._touched = [dict.fromkeys(step.values) for step in memory.steps]
        self._groups: list[ColocationGroup] = []

    def run(self) -> tuple[GraphMemory, list[ColocationGroup]]:
        last = self._last_touches()
        empty = {v for v in range(len(self._memory.values)) if self._is_inside(v, last.get(v, -1))}
        for value in sorted(empty):
            made = self._memory.values[value].made_at
            if last[value] > made:
                self._groups.append(ColocationGroup.of(range(made, last[value] + 1), "one kernel of inductor"))
        self._keep_sources(empty)
        root = self._take_over(empty, self._last_touches())
        return self._renumbered(empty, root), self._groups

    def _last_touches(self) -> dict[int, int]:
        return {value: t for t, touched in enumerate(self._touched) for value in touched}

    def _loops_only(self, first: int, end: int) -> bool:
        return self._external_until[first] == self._external_until[end]

    def _in_one(self, first: int, last: int) -> bool:
        return self._part[first] == self._part[last]

    def _is_inside(self, number: int, last: int) -> bool:
        """Return whether only the kernel that makes a value reads it."""
        value = self._memory.values[number]
        if value.role is Role.INPUT or value.returned or number in self._buffers:
            return False
        return self._loops_only(value.made_at, last + 1) and self._in_one(value.made_at, last)

    def _keep_sources(self, empty: set[int]) -> None:
        """Let each step that reads a value without a buffer touch the sources of that value instead."""
        sources: dict[int, dict[int, None]] = {}
        for t, touched in enumerate(self._touched):
            for value in list(touched):
                if value in empty and self._memory.values[value].made_at < t:
                    touched |= sources[value]
            for value in touched:
                if value in empty and self._memory.values[value].made_at == t:
                    sources[value] = {v: None for v in touched if v not in empty}

    def _take_over(self, empty: set[int], last: dict[int, int]) -> list[int]:
        """Return, for every value, the value whose storage it has."""
        values = self._memory.values
        root = list(range(len(values)))
        made_by: dict[int, list[int]] = {}
        for number, value in enumerate(values):
            if value.role is Role.ACTIVATION and number not in empty:
                made_by.setdefault(value.made_at, []).append(number)
        for t, made in made_by.items():
            dying = [v for v in self._touched[t] if v not in empty and last[v] == t and values[v].made_at < t]
            for number in made if self._loops_only(t, t + 1) else ():
                for source in dying:
                    if self._can_take(source, number, t):
                        root[number] = root[source]
                        dying.remove(source)
                        between = range(values[source].made_at, t + 1)
                        self._groups.append(ColocationGroup.of(between, "written in place by inductor"))
                        break
        return root

    def _can_take(self, source: int, number: int, t: int) -> bool:
        values = self._memory.values
        return (
            values[source].role is Role.ACTIVATION
            and not values[source].returned
            and values[source].bytes == values[number].bytes
            and self._loops_only(values[source].made_at + 1, t)
            and self._in_one(values[source].made_at, t)
        )

    def _renumbered(self, empty: set[int], root: list[int]) -> GraphMemory:
        number_of: dict[int, int] = {}
        kept: list[ActivationStorage] = []
        for number, value in enumerate(self._memory.values):
            if root[number] == number:
                number_of[number] = len(kept)
                kept.append(replace(value, bytes=0) if number in empty else replace(value))
            else:
                # The name of the last holder: it is what a later partition receives.
                holder = kept[number_of[root[number]]]
                holder.name, holder.returned = value.name, holder.returned or value.returned
        steps = []
        for step, touched in zip(self._memory.steps, self._touched, strict=True):
            values = dict.fromkeys(number_of[root[v]] for v in touched)
            writes = frozenset(number_of[root[v]] for v in step.writes)
            reshapes = frozenset(number_of[root[v]] for v in step.reshapes)
            steps.append(replace(step, values=tuple(values), writes=writes, reshapes=reshapes))
        return replace(self._memory, steps=steps, values=kept)


def _with_workspace(memory: GraphMemory, parts: Sequence[Kernels], starts: Sequence[int]) -> GraphMemory:
    """Set each workspace to the bytes that the step's kernels have allocated beyond the resident values."""
    steps: list[NodeMemory] = []
    totals = allocated(parts, len(memory.steps), memory.symbols)
    for step, values, of_kernels in zip(memory.steps, resident(memory, starts), totals, strict=True):
        workspace = undominated(_difference(total, values) for total in of_kernels)
        steps.append(replace(step, workspace=workspace, scratch=None))
    return replace(memory, steps=steps)


def _difference(a: Terms, b: Terms) -> Size:
    return from_terms({m: c for m in a.keys() | b.keys() if (c := a.get(m, 0) - b.get(m, 0))})
