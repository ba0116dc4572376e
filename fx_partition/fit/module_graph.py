"""The module graph: the memory of a graph as a device holds it, and the modules between which it may be cut.

Before: 285 steps, the first of them ``embedding`` of "model.embed_tokens" and ``to_4`` of
        "model.layers.0.input_layernorm"
After:  the pieces "model.embed_tokens", "model", "model.rotary_emb", "model.layers.0", "model.layers.1", ..., each with
        the position of its first step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import sympy
import torch
import torch.fx

from fx_partition.common.errors import PartitionError

from ..passes.capture.captured_graph import CapturedGraph
from ..passes.capture.user_names import module_path, module_stack
from ..passes.constraints.atoms import Atoms, find_atoms
from ..passes.footprint.device_memory import on_device
from ..passes.footprint.graph_memory import GraphMemory
from ..passes.footprint.state_inputs import kept_results
from ..passes.partitioner.build_chain import lay_out
from ..passes.partitioner.chain import Chain

#: Where boundaries may be: between modules, between nodes, or around modules of these paths and classes.
Boundaries: TypeAlias = "str | Sequence[str]"


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
    boundaries: Boundaries = "modules",
    root: str = "",
    kept: Mapping[int, str] | None = None,
) -> ModuleGraph:
    """Return the module graph of a captured graph.

    Args:
        captured: the graph.
        memory: its memory.
        boundaries: "modules": a block stays whole; "nodes": as in a plan; or names of classes and paths of modules that
            stay whole.
        root: the path of the user's model in the captured one.
        kept: the values that stay from call to call, with their names (see `kept_results`).

    Raises:
        PartitionError: a name in ``boundaries`` is neither a class nor a path of a module of the graph.
    """
    atoms = find_atoms(captured, memory)
    memory = on_device(kept_results(memory.reordered(atoms.order), kept or {}))
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    stacks = [module_stack(nodes[step.node]) for step in memory.steps]
    named = {boundaries} if isinstance(boundaries, str) else set(boundaries)
    found = [_block(stack, named, root) for stack in stacks]
    if not isinstance(boundaries, str):
        _refuse_unknown(named, stacks, root)
    own = [plain_path(module_path(nodes[step.node]), root) for step in memory.steps]
    paths = _of_modules([block or path for block, path in zip(found, own, strict=True)])
    if not any(paths):  # a tracer that knows no modules
        boundaries, paths = "nodes", [step.node for step in memory.steps]
    starts = [
        start for start in atoms.starts[:-1]
        if start == 0 or boundaries == "nodes" or paths[start] != paths[start - 1]
    ]  # fmt: skip
    labels = tuple(paths[start] for start in starts)
    names = set(filter(None, found))
    blocks = tuple(label in names for label in labels)
    graph = ModuleGraph(memory, (*starts, len(memory.steps)), labels, blocks, {})
    in_blocks = {weight for piece, block in enumerate(blocks) if block for weight in graph.weights_of(piece)}
    return replace(graph, matrices={w: m for w, m in _matrices(captured, memory).items() if w in in_blocks})


def _block(stack: Sequence[tuple[str, str]], named: set[str], root: str) -> str:
    """Return the path of the outermost block that a step is in; "" if it is in none."""
    for path, kind in stack:
        plain = plain_path(path, root)
        if named == {"modules"} or named == {"nodes"}:
            if plain.rpartition(".")[2].isdecimal():
                return plain
        elif plain in named or kind in named:
            return plain
    return ""


def _of_modules(paths: Sequence[str]) -> list[str]:
    """Return for each step the module to list it under: a step of a module that contains others goes with the step
    before it, at the start with the one behind.

    Example: ``["", "embed", "", "layers.0", "layers.0"]`` becomes ``["embed", "embed", "embed", "layers.0", ...]``.
    """
    parents = {path[:end] for path in paths for end in (i for i, c in enumerate(path) if c == ".")} | {""}
    found: list[str] = []
    newest = next((path for path in paths if path not in parents), "")
    for path in paths:
        newest = newest if path in parents else path
        found.append(newest)
    return found


def plain_path(path: str, root: str) -> str:
    """Return a path in the captured model as the path in the user's model, which is at `root` in it."""
    return "" if path == root else path.removeprefix(f"{root}.")


def _refuse_unknown(named: set[str], stacks: Sequence[Sequence[tuple[str, str]]], root: str) -> None:
    known = {name for stack in stacks for path, kind in stack for name in (plain_path(path, root), kind)}
    if unknown := sorted(named - known):
        raise PartitionError(
            f"boundaries names {', '.join(map(repr, unknown))}: no step of the graph comes from a module of that path "
            'or class; name others, or use boundaries="modules"'
        )


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
