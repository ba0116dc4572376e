"""Choose the nodes to slice, and the number of parts of each, so that no atom exceeds the budget: ``oversize="slice"``.

An atom is *oversize* if its own footprint exceeds the budget: it spills even alone in a partition. Where one of its
nodes can be computed in slices (`slicing.rules`), the graph is rewritten (`slicing.rewrite`) so that each slice is an
atom that fits.

Before (budget 24 MiB)::

    linear (x 16 KiB, weight 100 MiB, result 200 KiB)                       spills 76 MiB

After ``find_slicings`` (``Slicing("linear", "outputs", 5)``) and ``apply_slicings``::

    linear_slice_0 ... linear_slice_4 (weight 20 MiB each), linear (cat)    nothing spills

How the parts are found. A slice holds the node's inputs, its share of the weight and its share of the result: these
give a lower bound on the number of parts. The workspace of its operator depends on the slice's shape, so slices of
the shapes of that many parts are written into a copy of the graph, whose memory is then measured. Where they do not
fit, the smallest possible slice tells whether any number of parts does. If so, the fewest are found in growing steps,
then by bisection (more parts never make a slice larger). All nodes go through this together. Finally all slices are
written, and a node with a slice or a join that does not fit continues with its other axis. Slices over outputs come
first: a concatenation holds two results, while adding up slices over inputs holds three. A node stays whole where no
number of parts helps: its inputs alone exceed the budget, or the node that joins the slices does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import sympy

from fx_partition.common.errors import PartitionWarning

from ..capture.captured_graph import CapturedGraph
from ..constraints.atoms import Atoms, KeepTogether, find_atoms
from ..footprint.analyze import analyze_memory
from ..footprint.graph_memory import GraphMemory
from ..partitioner.build_chain import lay_out
from ..partitioner.chain import Chain
from ..partitioner.greedy import oversize_atoms
from .rewrite import Slicer, Slicing, remember_sliced
from .rules import Recipe, Unsliceable


def find_slicings(
    captured: CapturedGraph,
    memory: GraphMemory,
    atoms: Atoms,
    numbers: Mapping[sympy.Symbol, int],
    budget: int,
    keep_together: KeepTogether = (),
) -> tuple[Slicing, ...]:
    """Return the slicings that make oversize atoms fit, with the fewest parts each; in the order of the graph.

    Each round rewrites the graph and measures its memory; two rounds are enough where slices have no workspace. The
    graph of the last round is kept, so `apply_slicings` does not write it again.

    Args:
        captured: the graph.
        memory: as `analyze_memory` returns it for the graph, in the graph's order.
        atoms: as `find_atoms` returns them for the graph.
        numbers: the binding, ``memory.symbols.bind(...)``.
        budget: usable bytes of one device.
        keep_together: the groups that ``atoms`` was made with.

    Example::

        >>> from fx_partition.passes.constraints.atoms import find_atoms
        >>> from fx_partition.passes.capture.capture_model import capture
        >>> captured = capture(torch.nn.Linear(256, 1024), torch.randn(1, 256))  # 1 MiB of weights
        >>> memory = analyze_memory(captured)
        >>> find_slicings(captured, memory, find_atoms(captured, memory), memory.symbols.bind(), 400 * 1024)
        (Slicing(node='linear', axis='outputs', parts=3),)
    """
    search = _Search(captured, memory, numbers, budget, keep_together)
    tries = _candidates(captured, memory, atoms, numbers, budget)
    while tries:
        unsettled = [t for t in tries if not t.settled]
        if unsettled:
            too_large = search.too_large(t.proposal for t in unsettled)
            for t in unsettled:
                t.learn(fits=t.node not in too_large)
        else:
            failed = search.failures(t.proposal for t in tries)
            if not failed:
                break
            for t in tries:
                if t.node in failed:
                    t.next_recipe()
        tries = [t for t in tries if t.recipes]
    return tuple(t.proposal for t in tries)


@dataclass
class _Sizes:
    """Bytes of a node by itself: its inputs, the weights that it touches, the largest of them, its result."""

    received: int
    weights: int
    largest_weight: int
    result: int

    def fewest_parts(self, recipe: Recipe, budget: int) -> int | None:
        """Return a lower bound on the number of parts that fit, without workspace; None if no number does."""
        if recipe.axis == "outputs":
            # All slices and their concatenation are resident together; a slice shares out weights and result.
            joint, fixed, shared = 2 * self.result, self.received, self.weights + self.result
        else:
            # Two summands and their sum; a chained slice adds to the sum as it goes.
            joint = (2 if recipe.chained is not None else 3) * self.result
            fixed, shared = self.received + self.result, self.largest_weight
        if joint > budget or fixed > budget:
            return None
        most_units = (budget - fixed) * recipe.units // shared if shared else recipe.units
        if most_units < 1:
            return None
        return max(2, -(-recipe.units // most_units))


class _Try:
    """The search for one node: the recipes left to try, and bounds on the number of parts of the first."""

    def __init__(self, node: str, recipes: Iterable[Recipe], sizes: _Sizes, budget: int) -> None:
        self.node = node
        possible = ((recipe, sizes.fewest_parts(recipe, budget)) for recipe in recipes)
        self.recipes = [(recipe, parts) for recipe, parts in possible if parts is not None]
        self._begin()

    def _begin(self) -> None:
        self.parts = self.recipes[0][1] if self.recipes else 0
        self._too_few = self.parts - 1
        self._enough: int | None = None
        self._stride = 1

    def next_recipe(self) -> None:
        del self.recipes[0]
        self._begin()

    @property
    def settled(self) -> bool:
        return self._enough == self._too_few + 1

    @property
    def proposal(self) -> Slicing:
        return Slicing(self.node, self.recipes[0][0].axis, self.parts)

    def learn(self, fits: bool) -> None:
        """Record whether the slices of the proposal fit, and choose the next number of parts."""
        most = self.recipes[0][0].units
        if fits:
            self._enough = self.parts
        else:
            self._too_few = self.parts
        if self._enough is None:
            if self.parts == most:
                self.next_recipe()
            else:
                self.parts = most
        elif self.settled:
            self.parts = self._enough
        else:
            self.parts = min(self._too_few + self._stride, (self._too_few + self._enough) // 2)
            self._stride *= 2


class _Search:
    """Writes trial slices into copies of a graph, and finds those that exceed the budget."""

    def __init__(
        self,
        captured: CapturedGraph,
        memory: GraphMemory,
        numbers: Mapping[sympy.Symbol, int],
        budget: int,
        keep_together: KeepTogether,
    ) -> None:
        self._captured, self._memory, self._numbers = captured, memory, numbers
        self._budget, self._keep_together = budget, keep_together

    def too_large(self, slicings: Iterable[Slicing]) -> set[str]:
        """Return the nodes with a slice that exceeds the budget; only one slice of each shape is written."""
        slicer = Slicer(self._captured, self._memory)
        samples = {slicing.node: slicer.sample(slicing) for slicing in slicings}
        oversize = self._oversize(slicer.result())
        return {node for node, names in samples.items() if not oversize.isdisjoint(names)}

    def failures(self, slicings: Iterable[Slicing]) -> set[str]:
        """Return the nodes of which a slice or a join exceeds the budget or cannot be written.

        Without failures the graph is the one to plan, so it is kept.
        """
        slicings = tuple(slicings)
        slicer = Slicer(self._captured, self._memory)
        written: dict[str, tuple[str, ...]] = {}
        node = ""
        try:
            for slicing in slicings:
                node = slicing.node
                written[node] = slicer.slice(slicing)
        except Unsliceable:
            return {node}
        sliced = slicer.result()
        oversize = self._oversize(sliced)
        failed = {node for node, names in written.items() if not oversize.isdisjoint(names)}
        if not failed:
            remember_sliced(self._captured, slicings, sliced)
        return failed

    def _oversize(self, captured: CapturedGraph) -> set[str]:
        """Return the names of the nodes of oversize atoms."""
        memory = analyze_memory(captured)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartitionWarning)  # the planner warns, about the graph that is kept
            atoms = find_atoms(captured, memory, self._keep_together)
        return _oversize_steps(memory, atoms, self._numbers, self._budget)


def _oversize_steps(memory: GraphMemory, atoms: Atoms, numbers: Mapping[sympy.Symbol, int], budget: int) -> set[str]:
    memory = memory.reordered(atoms.order)
    chain = lay_out(memory, atoms, numbers)
    found: set[str] = set()
    for atom in oversize_atoms(chain, budget):
        found.update(step.node for step in memory.steps[atoms.starts[atom] : atoms.starts[atom + 1]])
    return found


def _candidates(
    captured: CapturedGraph, memory: GraphMemory, atoms: Atoms, numbers: Mapping[sympy.Symbol, int], budget: int
) -> list[_Try]:
    """Return a search for each node of an oversize atom that has recipes, in the order of the graph."""
    too_large = _oversize_steps(memory, atoms, numbers, budget)
    if not too_large:
        return []
    chain = lay_out(memory, atoms, numbers)
    slicer = Slicer(captured, memory)
    found: list[_Try] = []
    for t, step in enumerate(memory.steps):
        if step.node not in too_large:
            continue
        try:
            recipes = slicer.recipes(step.node)
        except Unsliceable:
            continue
        found.append(_Try(step.node, recipes.values(), _sizes(chain, t), budget))
    return [candidate for candidate in found if candidate.recipes]


def _sizes(chain: Chain, step: int) -> _Sizes:
    values = chain.touch_value[chain.touch_start[step] : chain.touch_start[step + 1]]
    made = chain.value_def[values] == step
    size = chain.value_bytes[values]
    rows = slice(int(chain.weight_start[step]), int(chain.weight_start[step + 1]))
    weights = np.minimum(chain.weight_touch_bytes[rows], chain.weight_bytes[chain.weight_id[rows]])
    return _Sizes(
        received=int(size[~made].sum()),
        weights=int(weights.sum()),
        largest_weight=int(weights.max(initial=0)),
        result=int(size[made].sum()),
    )
