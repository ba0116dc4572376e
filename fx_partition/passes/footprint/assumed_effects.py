"""Assume the effect of an operator that does not run on fake tensors, from its name and from the tracer's results.

Such operators are those under vmap or grad, higher-order operators, and any without a fake kernel.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import is_wrapped
from ..capture.in_place_ops import called, is_in_place
from ..capture.operators import OpOverload, schema_of
from ..capture.tensor_storage import storage_key
from .storage_refs import Place, leaf_places

# A plan lists this once, in place of each operator under vmap or grad, as without a workspace rule.
UNDER_FUNC = "operators under torch.func"


def assumed_name(node: torch.fx.Node, captured: CapturedGraph) -> str:
    """Return the name by which a plan lists an operator whose workspace is unknown."""
    values = (captured.values.get(n) for n in (node, *node.all_input_nodes))
    return UNDER_FUNC if any(is_wrapped(tensor) for value in values for tensor in _tensors(value)) else called(node)


def given_storages(
    node: torch.fx.Node, captured: CapturedGraph, places: Mapping[torch.fx.Node, Any]
) -> dict[Hashable, Place]:
    """Return the places of a node's arguments, by the memory of the tracer's tensors."""
    given = [(captured.values.get(source), places.get(source)) for source in node.all_input_nodes]
    return {
        storage_key(leaf): place._replace(shown=None)
        for value, held in given
        for leaf, place in zip(_tensors(value), leaf_places(held), strict=False)
    }


def works_in_place(node: torch.fx.Node) -> bool:
    """Whether an operator writes its first argument, by name (``relu_``, ``setitem``) or schema (``Tensor(a!)``)."""
    if isinstance(node.target, OpOverload):
        return bool(schema_of(node.target).is_mutable)
    return called(node) == "setitem" or is_in_place(node)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
