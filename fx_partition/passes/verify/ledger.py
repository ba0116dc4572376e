"""What runs touch, in the order of a plan and in numbers: all that figures and proofs are computed from.

Before (a run of a symbolic graph)::

    linear touches x (256*s0 bytes), weight (16384) and makes linear (256*s0); workspace 0

After, with the number 4 for s0::

    activations [0, 2], weights [(1, 16384)], workspace 0; sizes {0: 1024, 1: 16384, 2: 1024}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import sympy

from ..capture.symbolic_sizes import Evaluator, Size
from .deltas import Deltas
from .runs import Reading, Run


@dataclass(frozen=True)
class Sizes:
    """The symbolic sizes of a reading in a plan's order.

    Attributes:
        reading: of the graph.
        order: the places of runs in the trace, in the order of the plan.
        workspaces: of each run in that order, at the moments that can be the highest, measured at the plan's sizes.
        estimated: operators whose scratch memory depends on the processor and was not measured.
        adds_up: whether footprints add up what all steps make and allocate.
    """

    reading: Reading
    order: Sequence[int]
    workspaces: Sequence[tuple[Size, ...]]
    estimated: tuple[str, ...]
    adds_up: bool = False

    @cached_property
    def _runs(self) -> list[Run]:
        return [self.reading.runs[t] for t in self.order]

    @cached_property
    def _evaluator(self) -> Evaluator:
        sizes: list[Size] = [memory.bytes for memory in self.reading.memories]
        for run, workspace in zip(self._runs, self.workspaces, strict=True):
            sizes += [*run.touches.values(), *workspace]
        return Evaluator(sizes)

    def at(self, numbers: Mapping[sympy.Symbol, int]) -> Ledger:
        """Return the ledger for numbers of the symbols.

        Raises:
            PartitionError: a size has no value for them.
        """
        memories, runs = self.reading.memories, self._runs
        values = iter(self._evaluator(numbers))
        found = list(islice(values, len(memories)))
        is_activation = [memory.is_activation for memory in memories]
        activations: list[list[int]] = []
        weights: list[list[tuple[int, int]]] = []
        moments: list[tuple[int, ...]] = []
        for run, workspace in zip(runs, self.workspaces, strict=True):
            touched = list(zip(run.touches, values, strict=False))
            activations.append([memory for memory, _ in touched if is_activation[memory]])
            weights.append([pair for pair in touched if not is_activation[pair[0]]])
            moments.append(tuple(islice(values, len(workspace))))
        place = {t: i for i, t in enumerate(self.order)}
        return Ledger(
            names=[run.node.name for run in runs],
            sizes=found,
            activations=activations,
            weights=weights,
            moments=moments,
            made_at=[place.get(memory.made_at, -1) for memory in memories],
            returned=[memory.is_returned for memory in memories],
            state={number for number, memory in enumerate(memories) if memory.is_state},
            memory_names=[memory.name for memory in memories],
            adds_up=self.adds_up,
        )


def measured_sizes(
    reading: Reading, order: Sequence[int], numbers: Mapping[sympy.Symbol, int], *, adds_up: bool
) -> Sizes:
    """Return the sizes of a reading, with scratch memory as this machine's kernels take it.

    Args:
        order: the places of runs in the trace, in the order of the plan.
        numbers: the plan's binding.
        adds_up: whether footprints add up what all steps make and allocate.
    """
    runs = [reading.runs[t] for t in order]
    measured = [(run.workspace, ()) if run.scratch is None else run.scratch.at(numbers) for run in runs]
    estimated = dict.fromkeys(name for _, names in measured for name in names)
    return Sizes(reading, order, [workspace for workspace, _ in measured], tuple(estimated), adds_up)


class Ledger:
    """Steps in the order of a plan.

    Attributes:
        names: of the node of each step.
        sizes: bytes of each memory.
        activations: of each step the activations that it touches.
        weights: of each step (weight or state, bytes that it touches).
        workspace: of each step the bytes in addition to its results at its highest moment.
        moments: of each step these bytes at every moment.
        made_at: the step that makes a memory, -1 for none.
        returned: whether the graph returns it.
        last_touch: the last step that touches an activation.
        last: the same; the number of steps if the graph returns it.
        previous, following: for each entry of ``activations`` the step that touched it before, or does next, or -1.
        state: the memories that are state.
        memory_names: of each memory.
        adds_up: whether the footprint of steps is the sum of their weights, ``makes`` and workspaces (the size of
            layers in the paper), and not their peak.
        makes: bytes of the activations that each step makes.
    """

    def __init__(
        self,
        names: list[str],
        sizes: list[int],
        activations: list[list[int]],
        weights: list[list[tuple[int, int]]],
        moments: list[tuple[int, ...]],
        made_at: list[int],
        returned: list[bool],
        state: Iterable[int],
        memory_names: list[str],
        adds_up: bool = False,
    ) -> None:
        self.adds_up = adds_up
        self.names, self.sizes, self.activations, self.weights = names, sizes, activations, weights
        self.moments, self.workspace = moments, [max(0, *found) for found in moments]
        self.made_at, self.returned, self.state, self.memory_names = made_at, returned, set(state), memory_names
        self.makes = [
            sum(sizes[memory] for memory in found if made_at[memory] == step) for step, found in enumerate(activations)
        ]
        self.last: dict[int, int] = {}
        self.last_touch: dict[int, int] = {}
        self.previous: list[list[int]] = []
        self.following: list[list[int]] = [[-1] * len(found) for found in activations]
        seen: dict[int, tuple[int, int]] = {}
        for step, found in enumerate(activations):
            self.previous.append([seen[memory][0] if memory in seen else -1 for memory in found])
            for place, memory in enumerate(found):
                if memory in seen:
                    before, entry = seen[memory]
                    self.following[before][entry] = step
                seen[memory] = (step, place)
                self.last_touch[memory] = step
                self.last[memory] = len(names) if returned[memory] else step

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def deltas(self) -> Deltas:
        return Deltas(self)
