"""The module graph: the memory of a graph as a device holds it, and the modules between which it may be cut.

Before: 285 steps, the first of them ``embedding`` of "model.embed_tokens" and ``to_4`` of
        "model.layers.0.input_layernorm"
After:  the pieces "model.embed_tokens", "model", "model.rotary_emb", "model.layers.0", "model.layers.1", ..., each with
        the position of its first step
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import sympy
import torch
import torch.fx

from ..passes.capture.captured_graph import CapturedGraph
from ..passes.constraints.atoms import Atoms, find_atoms
from ..passes.constraints.module_boundaries import MODULES, NODES, between_pieces, find_units
from ..passes.footprint.device_memory import on_device
from ..passes.footprint.graph_memory import GraphMemory
from ..passes.footprint.state_inputs import kept_results
from ..passes.partitioner.build_chain import lay_out
from ..passes.partitioner.chain import Chain


@dataclass(frozen=True)
class Matrix:
    """A weight that can be quantised: how many numbers it has, in how many rows, and the bytes of one."""

    numel: int
    rows: int
    itemsize: int


@dataclass(frozen=True)
class ModuleGraph:
    """A graph in pieces between which it may be cut.

    Attributes:
        memory: the memory of the whole graph, with all weights whole.
        starts: the step where each piece begins, then the number of steps.
        labels: the module of each piece, as in ``named_modules``; "" for steps of the model itself.
        blocks: for each piece whether it is a block, a module of a list.
        matrices: the weights of blocks that can be quantised, by number.
    """

    memory: GraphMemory
    starts: tuple[int, ...]
    labels: tuple[str, ...]
    blocks: tuple[bool, ...]
    matrices: Mapping[int, Matrix]

    def measured_at(self, numbers: Mapping[sympy.Symbol, int]) -> ModuleGraph:
        """Return the same graph with the workspace of this machine's kernels, measured at these sizes."""
        return replace(self, memory=self.memory.measured_at(numbers))

    def chain(self, numbers: Mapping[sympy.Symbol, int]) -> Chain:
        """Return the planner's input; kernels measured at other sizes count in proportion to their rules."""
        memory = replace(self.memory, measured_for=dict(numbers))
        return lay_out(memory, Atoms(tuple(range(len(memory.steps))), self.starts), numbers)

    def weights_of(self, piece: int) -> set[int]:
        """Return the weights that a piece touches."""
        steps = self.memory.steps[self.starts[piece] : self.starts[piece + 1]]
        return {weight for step in steps for weight in step.weights}


def module_graph(
    captured: CapturedGraph,
    memory: GraphMemory,
    boundaries: str | tuple[str, ...] = MODULES,
    root: str = "",
    kept: Mapping[int, str] | None = None,
) -> ModuleGraph:
    """Return the module graph of a captured graph.

    Args:
        captured: the graph.
        memory: its memory.
        boundaries: as `read_boundaries` returns it.
        root: the path of the user's model in the captured one.
        kept: the values that stay from call to call, with their names (see `kept_results`).

    Raises:
        PartitionError: no step comes from a module that ``boundaries`` names.
    """
    atoms = find_atoms(captured, memory)
    units = find_units(captured, memory, boundaries, root)
    paths = units.of
    if not any(paths) and not units.whole:  # a tracer that knows no modules, or a model that is one
        boundaries, paths = NODES, tuple(step.node for step in memory.steps)
    if boundaries != NODES:
        atoms = between_pieces(atoms, paths)
    memory = on_device(kept_results(memory.reordered(atoms.order), kept or {}))
    labels = tuple(paths[atoms.order[start]] for start in atoms.starts[:-1])
    blocks = tuple(label in units.whole for label in labels)
    graph = ModuleGraph(memory, atoms.starts, labels, blocks, {})
    in_blocks = {weight for piece, block in enumerate(blocks) if block for weight in graph.weights_of(piece)}
    return replace(graph, matrices={w: m for w, m in _matrices(captured, memory).items() if w in in_blocks})


def _matrices(captured: CapturedGraph, memory: GraphMemory) -> dict[int, Matrix]:
    """Return the parameters of two and more dimensions by their weight's number, each the only tensor of its weight."""
    held: dict[int, list[torch.Tensor]] = {}
    for node, tensor in captured.weights.items():
        if node.name in memory.weight_of:
            held.setdefault(memory.weight_of[node.name], []).append(tensor)
    return {
        number: Matrix(tensors[0].numel(), tensors[0].shape[0], tensors[0].element_size())
        for number, tensors in held.items()
        if len({*map(id, tensors)}) == 1 and tensors[0].dim() > 1 and tensors[0].is_floating_point()
        and isinstance(tensors[0], torch.nn.Parameter)
    }  # fmt: skip
