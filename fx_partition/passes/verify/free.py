"""Nodes that cost nothing and are repeated where they are needed: views of weights, and numbers known at the start."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from ..capture.captured_graph import CapturedGraph
from ..capture.graph_symbols import unbacked_in
from ..capture.whole_regions import in_other_grad_mode, inside_whole_regions

if TYPE_CHECKING:
    from .runs import Run

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


def find_free(
    captured: CapturedGraph, runs: Mapping[torch.fx.Node, Run], rigid: Set[int], known: Set[Any]
) -> set[torch.fx.Node]:
    """Return the nodes that are free; one pass.

    A node in a region that must stay whole, or where gradients are switched, belongs there and is not free; nor is a
    view of a weight of which a tensor has its metadata changed.

    Args:
        runs: all nodes that were looked at.
        rigid: the weights of the last kind.
        known: the symbols that the inputs tell.
    """
    kept = {*inside_whole_regions(captured.gm.graph), *in_other_grad_mode(captured.gm.graph)}
    free: set[torch.fx.Node] = set()
    for node in captured.gm.graph.nodes:
        run = runs.get(node)
        if run is None:
            if node.op in ("placeholder", "get_attr") or node in captured.weights:
                free.add(node)
        elif run.picks:
            if node.args[0] in free:
                free.add(node)
        elif node not in kept and all(source in free for source in node.all_input_nodes):
            is_view = run.shows_weights and not run.seen & rigid
            if is_view or _is_number(node, captured, known):
                free.add(node)
    return free


def _is_number(node: torch.fx.Node, captured: CapturedGraph, known: Set[Any]) -> bool:
    """Whether a node makes a number, of numbers and of scalar inputs; a size of a tensor would carry that along."""
    value = captured.values.get(node)
    if not isinstance(value, _NUMBERS) or unbacked_in(value) - known:
        return False
    tensors = [(n, captured.values.get(n)) for n in node.all_input_nodes]
    return not any(
        isinstance(tensor, torch.Tensor) and (n in captured.weights or tensor.dim() > 0) for n, tensor in tensors
    )
