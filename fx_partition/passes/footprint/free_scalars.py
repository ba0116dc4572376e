"""Find the free scalars of a graph (see `graph_memory`): each partition that needs one computes it."""

from __future__ import annotations

from collections.abc import Collection, Set

import sympy
import torch
import torch.fx

from ..capture.captured_graph import CapturedGraph
from ..capture.graph_symbols import unbacked_in


def is_free_scalar(
    node: torch.fx.Node, captured: CapturedGraph, free: Collection[torch.fx.Node], at_start: Set[sympy.Symbol]
) -> bool:
    """Whether a node's value is a Python number that is computed from free nodes alone.

    A size that is read from a tensor is not: a partition that computes it would have to receive the tensor.

    Args:
        free: the free nodes before it.
        at_start: the symbols that are known from the inputs of the graph.
    """
    value = captured.values.get(node)
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return False
    if unbacked_in(value) - at_start:
        return False
    for source in node.all_input_nodes:
        if source not in free:
            return False
        tensor = captured.values.get(source)
        if isinstance(tensor, torch.Tensor) and (source in captured.weights or tensor.dim() > 0):
            return False
    return True
