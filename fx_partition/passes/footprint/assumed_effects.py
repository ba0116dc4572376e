"""What is assumed of an operator that does not run on fake tensors: it may write by its name, and share by its results.

Such are operators under vmap or grad, higher-order operators, and any that has no fake kernel.
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

# What a plan names as without a rule for workspace, in place of each operator that runs under vmap or grad.
UNDER_FUNC = "operators under torch.func"


def assumed_name(node: torch.fx.Node, captured: CapturedGraph) -> str:
    """What a plan calls an operator whose workspace is unknown."""
    values = (captured.values.get(n) for n in (node, *node.all_input_nodes))
    return UNDER_FUNC if any(is_wrapped(tensor) for value in values for tensor in _tensors(value)) else called(node)


def given_storages(
    node: torch.fx.Node, captured: CapturedGraph, places: Mapping[torch.fx.Node, Any]
) -> dict[Hashable, Place]:
    """The places of the memory that a node is given, by what the tracer's own tensors share."""
    given = [(captured.values.get(source), places.get(source)) for source in node.all_input_nodes]
    return {
        storage_key(leaf): place._replace(shown=None)
        for value, held in given
        for leaf, place in zip(_tensors(value), leaf_places(held), strict=False)
    }


def works_in_place(node: torch.fx.Node) -> bool:
    """Whether an operator writes its first argument, as ``relu_``, ``setitem`` and schemas with ``Tensor(a!)`` say."""
    if isinstance(node.target, OpOverload):
        return bool(schema_of(node.target).is_mutable)
    return called(node) == "setitem" or is_in_place(node)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
