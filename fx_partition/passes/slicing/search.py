"""Which nodes to slice, and into how many parts, so that no atom exceeds the budget: ``oversize="slice"``.

An atom is *oversize* if its own footprint exceeds the budget: alone in a partition, it spills. Where a node of it can
be computed in slices (`slicing.rules`), the graph is rewritten (`slicing.rewrite`) so that each slice is an atom that
fits.

Before (budget 24 MiB)::

    linear (x 16 KiB, weight 100 MiB, result 200 KiB)                       spills 76 MiB

After ``find_slicings`` (``Slicing("linear", "outputs", 5)``) and ``apply_slicings``::

    linear_slice_0 ... linear_slice_4 (weight 20 MiB each), linear (cat)    nothing spills

How the parts are found. A slice holds the node's inputs, its share of the weight and its share of the result, so
these alone say how many parts are needed at least. What workspace its operator takes depends on the slice's shape, so
slices of the shapes that so many parts have are written into the graph and its facts are gathered anew. Where they do
not fit, the smallest slice there is tells whether any number of parts does; if so, the fewest are found in growing
steps, then by bisection (more parts never make a slice larger). All nodes go through this together. At last the graph
is rewritten as a whole, and a node of which anything does not fit goes on with its other axis: slices over outputs
come first, since those over inputs add three results up where a concatenation holds two. A node is left as it is
where no number of parts helps: its inputs alone exceed the budget, or what joins the slices does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import sympy

from fx_partition.common.errors import PartitionWarning

from ..capture.capture_model import CapturedGraph
from ..constraints.atoms import Atoms, KeepTogether, find_atoms
from ..footprint.analyze import gather_facts
from ..footprint.graph_memory import GraphMemory
from ..partitioner.build_chain import lay_out
from ..partitioner.chain import Chain
from ..partitioner.greedy import oversize_atoms
from .rewrite import Slicer, Slicing, apply_slicings, why_not_sliced
from .rules import Recipe, Unsliceable

__all__ = ["Slicing", "apply_slicings", "find_slicings", "why_not_sliced"]


def find_slicings(
    captured: CapturedGraph,
    facts: GraphMemory,
    atoms: Atoms,
    numbers: Mapping[sympy.Symbol, int],
    budget: int,
    keep_together: KeepTogether = (),
) -> tuple[Slicing, ...]:
    """The slicings that make oversize atoms fit, with the fewest parts each; in the order of the graph.

    Each round gathers the facts of a rewritten graph; two are enough where slices take no workspace.

    Args:
        captured: the graph.
        facts: what `gather_facts` says of it, in its order.
        atoms: what `find_atoms` says of it.
        numbers: the binding, ``facts.symbols.bind(...)``.
        budget: usable bytes of one device.
        keep_together: what ``atoms`` was made with.

    Example::

        >>> from fx_partition.passes.constraints.atoms import find_atoms
        >>> from fx_partition.passes.capture.capture_model import capture
        >>> captured = capture(torch.nn.Linear(256, 1024), torch.randn(1, 256))  # 1 MiB of weights
        >>> facts = gather_facts(captured)
        >>> find_slicings(captured, facts, find_atoms(captured, facts), facts.symbols.bind(), 400 * 1024)
        (Slicing(node='linear', axis='outputs', parts=3),)
    """
    search = _Search(captured, facts, numbers, budget, keep_together)
    tries = _candidates(captured, facts, atoms, numbers, budget)
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
    """Bytes of a node on its own: what it receives, the weights that it touches, the largest of them, its result."""

    received: int
    weights: int
    largest_weight: int
    result: int

    def fewest_parts(self, recipe: Recipe, budget: int) -> int | None:
        """A lower bound on the parts that fit, workspace left out; None if none can."""
        if recipe.axis == "outputs":
            joint, fixed, shared = 2 * self.result, self.received, self.weights + self.result
        else:
            joint = (2 if recipe.chained is not None else 3) * self.result
            fixed, shared = self.received + self.result, self.largest_weight
        if joint > budget or fixed > budget:
            return None
        most_units = (budget - fixed) * recipe.units // shared if shared else recipe.units
        if most_units < 1:
            return None
        return max(2, -(-recipe.units // most_units))


class _Try:
    """The search for one node: recipes that are left, and what is known of the number of parts of the first."""

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
        """Take in whether the slices of the proposal fit."""
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
    """Looks at a graph under slicings."""

    def __init__(
        self,
        captured: CapturedGraph,
        facts: GraphMemory,
        numbers: Mapping[sympy.Symbol, int],
        budget: int,
        keep_together: KeepTogether,
    ) -> None:
        self._captured, self._facts, self._numbers = captured, facts, numbers
        self._budget, self._keep_together = budget, keep_together

    def too_large(self, slicings: Iterable[Slicing]) -> set[str]:
        """The nodes of which a slice exceeds the budget; of each, slices of every shape are written, and no more."""
        slicer = Slicer(self._captured, self._facts)
        samples = {slicing.node: slicer.sample(slicing) for slicing in slicings}
        oversize = self._oversize(slicer.result())
        return {node for node, names in samples.items() if not oversize.isdisjoint(names)}

    def failures(self, slicings: Iterable[Slicing]) -> set[str]:
        """The nodes of which a slice, or what joins them, exceeds the budget or cannot be written."""
        slicer = Slicer(self._captured, self._facts)
        written: dict[str, tuple[str, ...]] = {}
        node = ""
        try:
            for slicing in slicings:
                node = slicing.node
                written[node] = slicer.slice(slicing)
        except Unsliceable:
            return {node}
        oversize = self._oversize(slicer.result())
        return {node for node, names in written.items() if not oversize.isdisjoint(names)}

    def _oversize(self, captured: CapturedGraph) -> set[str]:
        facts = gather_facts(captured)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartitionWarning)  # the planner will say it, of the graph that is kept
            atoms = find_atoms(captured, facts, self._keep_together)
        return _oversize_steps(facts, atoms, self._numbers, self._budget)


def _oversize_steps(facts: GraphMemory, atoms: Atoms, numbers: Mapping[sympy.Symbol, int], budget: int) -> set[str]:
    facts = facts.reordered(atoms.order)
    chain = lay_out(facts, atoms, numbers)
    found: set[str] = set()
    for atom in oversize_atoms(chain, budget):
        found.update(step.node for step in facts.steps[atoms.starts[atom] : atoms.starts[atom + 1]])
    return found


def _candidates(
    captured: CapturedGraph, facts: GraphMemory, atoms: Atoms, numbers: Mapping[sympy.Symbol, int], budget: int
) -> list[_Try]:
    """A search for each node of an oversize atom that has recipes, in the order of the graph."""
    too_large = _oversize_steps(facts, atoms, numbers, budget)
    if not too_large:
        return []
    chain = lay_out(facts, atoms, numbers)
    slicer = Slicer(captured, facts)
    found: list[_Try] = []
    for t, step in enumerate(facts.steps):
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
