"""What a captured graph does to memory, as data: its runs, its storages, and what each run touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from ..capture.captured_graph import CapturedGraph
from ..capture.symbolic_sizes import Size, Symbols
from ..workspace.measured_scratch import Scratch
from .memories import Memory


@dataclass(eq=False)
class Held:
    """One tensor of a node.

    Attributes:
        memory: where it is.
        shown: what a view shows of a weight; None for all of it.
        like: a tensor that a dummy input is made like when it is asked for, in memory that no other tensor shows.
        tensor: the dummy input; None where it has not been made, or where none can be.
    """

    memory: int
    shown: Size | None = None
    like: torch.Tensor | None = None
    tensor: torch.Tensor | None = None


@dataclass
class Run:
    """One node that was looked at; those that are free are taken out at the end.

    Attributes:
        node, path: the node and the module that it comes from, or "".
        touches: bytes that it touches of each memory; of an activation always all.
        seen: the weights that its operands or results show, whether it reads them or not.
        writes: memories that it writes; to change the metadata of a tensor is to write.
        reshapes: those of which it changes the metadata of a tensor.
        workspace: bytes that it allocates in addition to its results, at the moments that can be the highest.
        scratch: the same with what is to be measured, None where nothing is.
        unknown: what a plan names as operators without a rule for workspace.
        draws: whether it takes random numbers.
        shows_weights: whether its results are views of weights, and it reads and writes nothing.
        picks: whether it takes a tensor out of a container.
    """

    node: torch.fx.Node
    path: str
    touches: dict[int, Size] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    reshapes: set[int] = field(default_factory=set)
    workspace: tuple[Size, ...] = (0,)
    scratch: Scratch | None = None
    unknown: tuple[str, ...] = ()
    draws: bool = False
    shows_weights: bool = False
    picks: bool = False


@dataclass(frozen=True)
class Reading:
    """What a graph does to memory.

    Attributes:
        captured: the graph.
        runs: the nodes that run, in the order of the trace.
        memories: every storage.
        holds: the activations that the tensors of a node are in, each once.
        symbols: the shape symbols.
        known: the symbols that the inputs tell.
    """

    captured: CapturedGraph
    runs: list[Run]
    memories: list[Memory]
    holds: dict[str, tuple[int, ...]]
    symbols: Symbols
    known: set[Any]

    def for_sessions(self, sessions: int) -> Reading:
        """Return the same reading with the written buffers of so many sessions, each with copies of its own."""
        if sessions == 1:
            return self
        own = {number for number, memory in enumerate(self.memories) if memory.is_of_session}
        runs = [
            replace(run, touches={m: size * sessions if m in own else size for m, size in run.touches.items()})
            for run in self.runs
        ]
        memories = [
            replace(memory, bytes=memory.bytes * sessions) if number in own else memory
            for number, memory in enumerate(self.memories)
        ]
        return replace(self, runs=runs, memories=memories)


def is_held(leaf: Any) -> bool:
    """Whether a part of a value is a tensor; for walks through a tree that stop there."""
    return isinstance(leaf, Held)


def held_in(value: Any) -> Sequence[Held]:
    """Return the tensors of what a node holds, in pytree order."""
    if isinstance(value, Held):  # nearly always, and a walk through a tree takes long
        return (value,)
    return [leaf for leaf in pytree.tree_leaves(value, is_leaf=is_held) if isinstance(leaf, Held)]


def tensors_in(value: Any) -> Sequence[torch.Tensor]:
    """Return the tensors of the fake value of a node, in pytree order."""
    if isinstance(value, torch.Tensor):
        return (value,)
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
