"""Numbers that a graph computes from free nodes alone (see `graph_memory`): each partition that needs one computes
it.
"""

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
    """A Python number made from free nodes alone. A size read from a tensor is none: it would carry the tensor.

    Args:
        at_start: the symbols that the inputs of the graph tell.
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
