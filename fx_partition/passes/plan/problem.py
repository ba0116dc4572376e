"""What is to be planned: the graph as it will run, and its footprints as numbers.

Slices first (they change the graph), then the footprint (it may change what stays together), then atoms, then numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

from ..capture.capture_model import CapturedGraph
from ..constraints.atoms import Atoms, find_atoms
from ..footprint.analyze import gather_facts
from ..footprint.graph_memory import GraphMemory
from ..inductor.fused_footprint import fuse
from ..ordering.search import permuted
from ..partitioner.build_chain import lay_out
from ..partitioner.chain import Chain
from ..partitioner.repeated_partitions import with_keys
from ..slicing.search import Slicing, apply_slicings, find_slicings
from .request import Request


@dataclass(frozen=True)
class Problem:
    """A graph that is ready for the planner.

    Attributes:
        captured: the graph, oversize nodes in slices if that was asked for.
        eager: its facts as eager runs it, in the order of the trace.
        model: its facts under the footprint, in the order of ``atoms``.
        atoms: what stays together, and in which order it runs.
        chain: ``model`` in numbers.
        numbers: the binding.
        slicings: what is in slices.
        fused: whether the footprint is that of compiled code.
    """

    captured: CapturedGraph
    eager: GraphMemory
    model: GraphMemory
    atoms: Atoms
    chain: Chain
    numbers: Mapping[sympy.Symbol, int]
    slicings: tuple[Slicing, ...]
    fused: bool

    def in_order(self, atom_order: Sequence[int]) -> Problem:
        """The same problem with atom ``atom_order[i]`` at place i."""
        assert not self.fused, "kernels are found in the order of the trace"
        atoms = self.atoms.permuted(atom_order)
        chain = permuted(self.chain, atom_order)
        return replace(self, atoms=atoms, model=self.eager.reordered(atoms.order), chain=chain)

    def settled(self, boundaries: Sequence[int]) -> tuple[GraphMemory, Chain]:
        """The facts and the chain that describe partitions, once it is known where they begin.

        Compiled code allocates by what crosses a boundary (see `fused_footprint`); for eager code nothing changes.
        """
        if not self.fused:
            return self.model, self.chain
        starts = [self.atoms.starts[boundary] for boundary in boundaries[:-1]]
        facts, _ = fuse(self.captured, self.eager.reordered(self.atoms.order), starts)
        return facts, lay_out(facts, self.atoms, self.numbers)


def pose(captured: CapturedGraph, facts: GraphMemory, request: Request, numbers: Mapping[sympy.Symbol, int]) -> Problem:
    """The problem that a request poses for a number of each symbol.

    Raises:
        PartitionError: ``keep_together`` names nothing.
    """
    facts = facts.measured_at(numbers)
    slicings: tuple[Slicing, ...] = ()
    if request.budget is not None and request.oversize == "slice":
        atoms = find_atoms(captured, facts, request.keep_together)
        slicings = find_slicings(captured, facts, atoms, numbers, request.budget, request.keep_together)
    if slicings:
        captured = apply_slicings(captured, slicings)
        facts = gather_facts(captured).measured_at(numbers)
    fused = request.footprint == "fused"
    model, together = fuse(captured, facts) if fused else (facts, [])
    atoms = find_atoms(captured, facts, request.keep_together, together)
    model = model.reordered(atoms.order)
    adds_up = request.footprint == "sum"
    chain = with_keys(lay_out(model, atoms, numbers, adds_up=adds_up), _operators(captured, model))
    return Problem(captured, facts, model, atoms, chain, numbers, slicings, fused)


def _operators(captured: CapturedGraph, facts: GraphMemory) -> list[Hashable]:
    """What each step runs: the operator, or the kind of module."""
    modules = dict(captured.gm.named_modules())
    runs: dict[str, Any] = {
        node.name: type(modules[str(node.target)]) if node.op == "call_module" else node.target
        for node in captured.gm.graph.nodes
    }
    return [runs[step.node] for step in facts.steps]
