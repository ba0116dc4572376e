"""The ledger of a plan for compiled code: the planner's own model says what inductor allocates.

Which kernels inductor makes decides what has memory at all, and that is a question of its source and not of the graph.
So for such plans alone the planner's `GraphMemory` and `fused_footprint.fuse` are used; the figures are computed from
them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from ..capture.captured_graph import CapturedGraph
from ..capture.symbolic_sizes import Evaluator, Size
from ..footprint.analyze import analyze_memory
from ..footprint.device_memory import on_device as whole_weights
from ..footprint.graph_memory import GraphMemory
from ..footprint.session_state import for_sessions
from ..inductor.fused_footprint import fuse
from .groups import Group
from .ledger import Ledger


@dataclass(frozen=True)
class FusedSizes:
    """Like `ledger.Sizes`, from a memory whose steps are in the plan's order."""

    memory: GraphMemory

    @cached_property
    def _evaluator(self) -> Evaluator:
        memory = self.memory
        sizes: list[Size] = [*(value.bytes for value in memory.values), *memory.weight_bytes]
        for step in memory.steps:
            sizes += [*step.weights.values(), *step.workspace]
        return Evaluator(sizes)

    def at(self, numbers: Mapping[sympy.Symbol, int]) -> Ledger:
        """Return the ledger for numbers of the symbols."""
        memory, shift = self.memory, len(self.memory.values)
        values = iter(self._evaluator(numbers))
        found = [next(values) for _ in range(shift + len(memory.weight_bytes))]
        weights: list[list[tuple[int, int]]] = []
        moments: list[tuple[int, ...]] = []
        for step in memory.steps:
            weights.append([(shift + weight, next(values)) for weight in step.weights])
            moments.append(tuple(next(values) for _ in step.workspace))
        none = [-1] * len(memory.weight_bytes)
        return Ledger(
            names=[step.node for step in memory.steps],
            sizes=found,
            activations=[list(step.values) for step in memory.steps],
            weights=weights,
            moments=moments,
            made_at=[value.made_at for value in memory.values] + none,
            returned=[value.returned for value in memory.values] + [False for _ in none],
            state={shift + weight for weight in memory.state},
            memory_names=[value.name for value in memory.values] + memory.weight_names,
        )

    @property
    def estimated(self) -> tuple[str, ...]:
        """Operators whose scratch memory was not measured."""
        return tuple(dict.fromkeys(name for step in self.memory.steps for name in step.estimated))


def fused_sizes(
    captured: CapturedGraph,
    numbers: Mapping[sympy.Symbol, int],
    order: Sequence[str],
    cuts: Sequence[int],
    *,
    sessions: int,
    on_device: bool,
) -> tuple[FusedSizes, list[Group]]:
    """Return what the steps of a plan touch as compiled code, and the groups that its kernels make.

    Args:
        numbers: the plan's binding.
        order: names of the nodes in the plan's order.
        cuts: the step at which each partition begins.
        sessions: how many copies there are of the buffers that the graph writes.
        on_device: whether weights count whole, as in a device's memory.
    """
    eager = analyze_memory(captured).measured_at(numbers)
    if on_device:
        eager = whole_weights(eager)
    eager = for_sessions(captured, eager, sessions)
    place = {step.node: t for t, step in enumerate(eager.steps)}
    memory, _ = fuse(captured, eager.reordered([place[name] for name in order]), cuts)
    return FusedSizes(memory), list(_kernels(captured, eager))


def _kernels(captured: CapturedGraph, eager: GraphMemory) -> Iterator[Group]:
    _, hulls = fuse(captured, eager)
    for hull in hulls:
        yield Group(sorted(hull.members), hull.reason)
