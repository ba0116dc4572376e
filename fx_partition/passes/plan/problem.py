"""Pose the planner's problem: the graph as it will run, and its footprints as numbers.

Slices come first (they change the graph), then the footprint (it may change which steps stay together), then atoms,
then numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

from ..capture.captured_graph import CapturedGraph
from ..constraints.atoms import Atoms, find_atoms
from ..constraints.module_boundaries import at_modules
from ..footprint.analyze import analyze_memory
from ..footprint.device_memory import on_device
from ..footprint.graph_memory import GraphMemory
from ..footprint.session_state import for_sessions
from ..inductor.fused_footprint import fuse
from ..partitioner.build_chain import lay_out
from ..partitioner.chain import Chain
from ..partitioner.permute import permuted
from ..partitioner.repeated_partitions import with_keys
from ..slicing.rewrite import Slicing, apply_slicings
from ..slicing.search import find_slicings
from .request import DEVICE, Request


@dataclass(frozen=True)
class Problem:
    """A graph that is ready for the planner.

    Attributes:
        captured: the graph, with oversize nodes in slices if the request says so.
        eager: its memory in eager mode, in trace order, on chip or on a device as the request says.
        model: its memory under the request's footprint, in the order of ``atoms``.
        atoms: the steps that stay together, and the order in which they run.
        chain: ``model`` in numbers.
        numbers: the binding.
        slicings: the nodes in slices.
        fused: whether the footprint is for compiled code.
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
        """Return the same problem with atom ``atom_order[i]`` at position i."""
        assert not self.fused, "kernels are found in trace order"
        atoms = self.atoms.permuted(atom_order)
        chain = permuted(self.chain, atom_order)
        return replace(self, atoms=atoms, model=self.eager.reordered(atoms.order), chain=chain)

    def refined(self, boundaries: Sequence[int]) -> tuple[GraphMemory, Chain]:
        """Return the memory and the chain that describe partitions exactly, once their boundaries are known.

        Compiled code allocates the values that cross a boundary (see `fused_footprint`); eager code stays the same.
        """
        if not self.fused:
            return self.model, self.chain
        starts = [self.atoms.starts[boundary] for boundary in boundaries[:-1]]
        memory, _ = fuse(self.captured, self.eager.reordered(self.atoms.order), starts)
        return memory, lay_out(memory, self.atoms, self.numbers)


def pose(
    captured: CapturedGraph, memory: GraphMemory, request: Request, numbers: Mapping[sympy.Symbol, int]
) -> Problem:
    """Return the problem that a request poses under a binding.

    Raises:
        PartitionError: ``keep_together`` or ``boundaries`` names a node or a module that the graph does not have.
    """
    memory = memory.measured_at(numbers)
    if request.memory == DEVICE:
        memory = on_device(memory)
    memory = for_sessions(captured, memory, request.sessions)
    slicings: tuple[Slicing, ...] = ()
    atoms: Atoms | None = None
    if request.budget is not None and request.oversize == "slice":
        atoms = find_atoms(captured, memory, request.keep_together)
        slicings = find_slicings(captured, memory, atoms, numbers, request.budget, request.keep_together)
    if slicings:
        captured = apply_slicings(captured, slicings)
        memory = for_sessions(captured, analyze_memory(captured).measured_at(numbers), request.sessions)
        atoms = None
    fused = request.footprint == "fused"
    model, together = fuse(captured, memory) if fused else (memory, [])
    if atoms is None or together:
        atoms = find_atoms(captured, memory, request.keep_together, together)
    atoms = at_modules(captured, memory, atoms, request.boundaries)
    model = model.reordered(atoms.order)
    adds_up = request.footprint == "sum"
    chain = with_keys(lay_out(model, atoms, numbers, adds_up=adds_up), _operators(captured, model))
    return Problem(captured, memory, model, atoms, chain, numbers, slicings, fused)


def _operators(captured: CapturedGraph, memory: GraphMemory) -> list[Hashable]:
    """Return, for each step, its operator or the class of its module."""
    modules = dict(captured.gm.named_modules())
    runs: dict[str, Any] = {
        node.name: type(modules[str(node.target)]) if node.op == "call_module" else node.target
        for node in captured.gm.graph.nodes
    }
    return [runs[step.node] for step in memory.steps]
