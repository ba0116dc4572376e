"""Facts of a graph as inductor materialises it: what pointwise operators hand to each other in one kernel is no buffer.

This is inductor for CPUs as of torch 2.13 with its default options (no freezing), which the modules beside this one
read from its source. The steps, their order and their weights stay as they are. What changes:

- a value that only its own fused kernel reads has no bytes, and the steps from its maker to its last reader stay
  together, as a boundary between them would bring it back;
- a result takes the storage of a value of the same size that dies in the making, and the steps between stay together;
- the workspace of a step is what the step has allocated at its fullest, beyond the values that are resident: the
  workspace of external kernels, operands laid out anew, statistics of norms, and the sources that a deferred result
  keeps alive.

Before (sizes in KiB, facts of ``linear(gelu(linear(x)) * 2)``)::

    linear: 64;  gelu: 64;  mul: 64;  linear_1: 64     steps: linear | gelu | mul | linear_1

After::

    linear, gelu and mul share 64;  linear_1: 64       steps: linear gelu mul | linear_1

Example::

    facts, together = fuse(captured, gather_facts(captured))
    atoms = find_atoms(captured, facts, together=together)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from ..capture.capture_model import CapturedGraph
from ..capture.symbolic_sizes import Size, Terms, from_terms, undominated
from ..constraints.atoms import ColocationGroup
from ..footprint.graph_memory import ActivationStorage, GraphMemory, NodeMemory, Role
from .buffer_liveness import allocated, resident
from .kernels import Kernels
from .lowering import lower
from .op_trace import Trace, split_trace, trace


def fuse(
    captured: CapturedGraph, facts: GraphMemory, starts: Sequence[int] = ()
) -> tuple[GraphMemory, list[ColocationGroup]]:
    """The facts of a graph under inductor, and the steps that must stay together for them to hold.

    What a partition allocates depends on where it begins and ends, more than facts can say: what crosses a boundary
    is a buffer, in the layout that eager gives it. So there are two uses: before there is a plan, for its search; and
    with the places where the partitions of a plan begin, for the bytes that each of them will take.

    Args:
        captured: the graph.
        facts: its facts as `gather_facts` gives them, or those in another order.
        starts: the first step of every partition, ascending from 0; empty before there is a plan.

    Returns:
        Facts of the same steps, and hulls for `atoms.find_atoms`. Sizes stay symbolic.
    """
    whole = trace(captured, facts)
    parts = [whole] if not starts else split_trace(whole, starts)
    kernels = [lower(part, planned=bool(starts)) for part in parts]
    merged, hulls = _Merger(facts, whole, kernels, starts).run()
    return _with_workspace(merged, kernels, starts), hulls


class _Merger:
    """Takes away values that are no buffers, and lets results take the storage of what dies in the making."""

    def __init__(self, facts: GraphMemory, whole: Trace, parts: Sequence[Kernels], starts: Sequence[int]) -> None:
        self._facts = facts
        buffers = {storage for kernels in parts for storage in kernels.realised if kernels.is_buffer(storage)}
        self._buffers = {value for storage, value in whole.value_of.items() if storage in buffers}
        external = {kernel.step for kernels in parts for kernel in kernels.kernels if kernel.extent is None}
        self._external_until = [0]  # how many of the steps before each place run an external kernel
        for t in range(len(facts.steps)):
            self._external_until.append(self._external_until[-1] + (t in external))
        later = set(starts[1:])
        self._part = list(itertools.accumulate(t in later for t in range(len(facts.steps))))  # of each step
        self._touched = [dict.fromkeys(step.values) for step in facts.steps]
        self._hulls: list[ColocationGroup] = []

    def run(self) -> tuple[GraphMemory, list[ColocationGroup]]:
        last = self._last_touches()
        empty = {v for v in range(len(self._facts.values)) if self._is_inside(v, last.get(v, -1))}
        for value in sorted(empty):
            made = self._facts.values[value].made_at
            if last[value] > made:
                self._hulls.append(ColocationGroup.of(range(made, last[value] + 1), "one kernel of inductor"))
        self._keep_sources(empty)
        root = self._take_over(empty, self._last_touches())
        return self._renumbered(empty, root), self._hulls

    def _last_touches(self) -> dict[int, int]:
        return {value: t for t, touched in enumerate(self._touched) for value in touched}

    def _loops_only(self, first: int, end: int) -> bool:
        return self._external_until[first] == self._external_until[end]

    def _in_one(self, first: int, last: int) -> bool:
        return self._part[first] == self._part[last]

    def _is_inside(self, number: int, last: int) -> bool:
        """Whether nobody but the kernel that makes a value reads it."""
        value = self._facts.values[number]
        if value.role is Role.INPUT or value.returned or number in self._buffers:
            return False
        return self._loops_only(value.made_at, last + 1) and self._in_one(value.made_at, last)

    def _keep_sources(self, empty: set[int]) -> None:
        """Whoever reads what is no buffer reads its sources."""
        sources: dict[int, dict[int, None]] = {}
        for t, touched in enumerate(self._touched):
            for value in list(touched):
                if value in empty and self._facts.values[value].made_at < t:
                    touched |= sources[value]
            for value in touched:
                if value in empty and self._facts.values[value].made_at == t:
                    sources[value] = {v: None for v in touched if v not in empty}

    def _take_over(self, empty: set[int], last: dict[int, int]) -> list[int]:
        """For every value, the value whose storage it has."""
        values = self._facts.values
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
                        self._hulls.append(ColocationGroup.of(between, "written in place by inductor"))
                        break
        return root

    def _can_take(self, source: int, number: int, t: int) -> bool:
        values = self._facts.values
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
        for number, value in enumerate(self._facts.values):
            if root[number] == number:
                number_of[number] = len(kept)
                kept.append(replace(value, bytes=0) if number in empty else replace(value))
            else:
                # The name of the last holder: it is what a later partition receives.
                holder = kept[number_of[root[number]]]
                holder.name, holder.returned = value.name, holder.returned or value.returned
        steps = []
        for step, touched in zip(self._facts.steps, self._touched, strict=True):
            values = dict.fromkeys(number_of[root[v]] for v in touched)
            writes = frozenset(number_of[root[v]] for v in step.writes)
            reshapes = frozenset(number_of[root[v]] for v in step.reshapes)
            steps.append(replace(step, values=tuple(values), writes=writes, reshapes=reshapes))
        return replace(self._facts, steps=steps, values=kept)


def _with_workspace(facts: GraphMemory, parts: Sequence[Kernels], starts: Sequence[int]) -> GraphMemory:
    """Workspaces that bring what is resident at each step up to what its kernels have allocated."""
    steps: list[NodeMemory] = []
    moments = allocated(parts, len(facts.steps), facts.symbols)
    for step, own, fullest in zip(facts.steps, resident(facts, starts), moments, strict=True):
        workspace = undominated(_difference(moment, own) for moment in fullest)
        steps.append(replace(step, workspace=workspace, scratch=None))
    return replace(facts, steps=steps)


def _difference(a: Terms, b: Terms) -> Size:
    return from_terms({m: c for m in a.keys() | b.keys() if (c := a.get(m, 0) - b.get(m, 0))})
