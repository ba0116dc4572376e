"""Refuse to cut a graph that writes an input which it has saved for its backward pass.

Each compiled partition has its own backward pass, and saves the inputs that the pass needs. If a later partition writes
such an input, autograd raises an error. If the same partition writes it, AOTAutograd may compute a wrong gradient, from
the written input (torch 2.13: ``rms_norm(x, w)``, then ``x.add_(1)``). So the graph is compiled whole, as inductor
alone would compile it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils import _pytree as pytree

from fx_partition.common.errors import UnreadableError
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.graph_memory import GraphMemory


def refuse_saved_writes(captured: CapturedGraph, memory: GraphMemory) -> None:
    """Raise an error if an input or buffer is written after a step whose result needs a gradient has read it.

    Raises:
        UnreadableError: it names the input and the step.
    """
    differentiable = set(_needing_gradients(captured))
    read_by: dict[int, str] = {}
    for step in memory.steps:
        for weight in step.weight_writes:
            if weight in read_by:
                raise UnreadableError(
                    f"{memory.weight_names[weight]} is written after {read_by[weight]} has read it, which may have "
                    "saved it for its backward pass"
                )
        if step.node in differentiable:
            for weight in step.weights.keys() - step.weight_writes:
                read_by.setdefault(weight, step.node)


def _needing_gradients(captured: CapturedGraph) -> Iterator[str]:
    """Yield the names of the nodes that make a tensor which needs a gradient."""
    for node, value in captured.values.items():
        if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(value)):
            yield node.name
