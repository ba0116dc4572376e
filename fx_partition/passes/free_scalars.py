"""Numbers that a graph computes from free nodes alone (see `facts`): each partition that needs one computes it."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from .captured import Captured


def is_free_scalar(node: torch.fx.Node, captured: Captured, free: Collection[torch.fx.Node]) -> bool:
    """A Python number made from free nodes alone. A size read from a tensor is none: it would carry the tensor."""
    value = captured.values.get(node)
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return False
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) and free_unbacked_symbols(value):
        return False
    for source in node.all_input_nodes:
        if source not in free:
            return False
        tensor = captured.values.get(source)
        if isinstance(tensor, torch.Tensor) and (source in captured.weights or tensor.dim() > 0):
            return False
    return True
