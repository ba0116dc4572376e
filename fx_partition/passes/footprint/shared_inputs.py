"""Group the inputs of a graph that share memory: find which are one value, and its bytes.

An input may be a slice of a larger tensor: it counts by its own elements. Two overlapping inputs are one value, as a
write to one shows in the other, and shared bytes count once; two disjoint slices are two values.

Before: ``a = data[:4]``, ``b = data[2:6]``, ``c = data[8:12]`` over rows of 32 bytes of ``data``
After: one value of 192 bytes for a and b, one of 128 bytes for c
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import UnreadableError

from ..capture.captured_graph import CapturedGraph
from ..capture.symbolic_sizes import Size, add_up, to_expr
from ..capture.tensor_storage import bytes_of, is_strided, storage_key
from .graph_memory import GraphMemory


@dataclass(frozen=True)
class InputGroup:
    """Inputs that overlap.

    Attributes:
        first: the first of them, whose name the value has.
        bytes: the bytes of all of them together.
        weight: the weight with which they overlap, to which their bytes belong; None if there is none.
    """

    first: torch.fx.Node
    bytes: Size
    weight: int | None


def input_groups(captured: CapturedGraph, weight_of: Mapping[str, int]) -> dict[int, InputGroup]:
    """Return the group of each tensor of the inputs, by the tensor's id.

    Args:
        weight_of: for each node that holds a weight, by name, the weight's number.

    Raises:
        UnreadableError: an input overlaps with several weights.
    """
    leaves = [
        (node, leaf)
        for node in captured.gm.graph.find_nodes(op="placeholder")
        for leaf in pytree.tree_leaves(captured.values.get(node))
        if isinstance(leaf, torch.Tensor)
    ]
    found: dict[int, InputGroup] = {}
    for places in overlapping([leaf for _, leaf in leaves]):
        members = [leaves[place] for place in places]
        weights = {weight_of[node.name] for node, _ in members if node in captured.weights}
        inputs = [(node, leaf) for node, leaf in members if node not in captured.weights]
        if inputs and len(weights) > 1:
            raise UnreadableError(f"the input {inputs[0][0].name} shares memory with several weights; pass a copy")
        if inputs:
            tensors = [leaf for _, leaf in inputs]
            group = InputGroup(inputs[0][0], shown_bytes(tensors), next(iter(weights), None))
            found |= {id(leaf): group for leaf in tensors}
    return found


def refuse_written_aliases(memory: GraphMemory) -> None:
    """Raise an error if inputs that overlap are written, as their copies on other devices would not overlap.

    Raises:
        UnreadableError: there are such inputs; the message names them.
    """
    holders: dict[int, list[str]] = {}
    for name in sorted(memory.written):
        holders.setdefault(memory.weight_of[name], []).append(name)
    for names in holders.values():
        if len(names) > 1:
            raise UnreadableError(
                f"{' and '.join(names)} share memory that the graph writes, and their copies on other devices would not"
            )


def overlapping(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Return the indices of tensors in groups that overlap, each group and all groups ascending.

    Two tensors of one storage and symbolic sizes may overlap for some sizes, so they are one group.
    """
    by_memory: dict[Hashable, list[int]] = {}
    for place, tensor in enumerate(tensors):
        by_memory.setdefault(storage_key(tensor), []).append(place)
    groups: list[list[int]] = []
    for places in by_memory.values():
        extents = {place: extent(tensors[place]) for place in places}
        if None in extents.values():
            groups.append(places)
        else:
            groups += _runs({place: found for place, found in extents.items() if found is not None})
    return sorted(groups)


def _runs(extents: dict[int, tuple[int, int]]) -> list[list[int]]:
    groups: list[list[int]] = []
    end = -1
    for (first, last), place in sorted((found, place) for place, found in extents.items()):
        if first >= end:
            groups.append([])
        groups[-1].append(place)
        end = max(end, last)
    return [sorted(group) for group in groups]


def extent(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Return the first and the end byte of a tensor in its memory; None where sizes are symbolic."""
    if not is_strided(tensor):
        size = bytes_of(tensor)
        return (0, size) if isinstance(size, int) else None
    numbers = [to_expr(n) for n in (*tensor.shape, *tensor.stride(), tensor.storage_offset())]
    if not all(isinstance(number, int) for number in numbers):
        return None
    *rest, first = [int(number) for number in numbers]
    sizes, strides = rest[: tensor.dim()], rest[tensor.dim() :]
    steps = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    elements = 0 if 0 in sizes else 1 + steps
    return first * tensor.element_size(), (first + elements) * tensor.element_size()


def shown_bytes(tensors: Sequence[torch.Tensor]) -> Size:
    """Return the bytes of overlapping tensors together: each layout once, and at most from the first to the last byte.
    """
    layouts = {_layout(tensor): _shown(tensor) for tensor in tensors}
    total = add_up(layouts.values())
    extents = [extent(tensor) for tensor in tensors]
    known = [found for found in extents if found is not None]
    if isinstance(total, int) and len(known) == len(extents):
        return min(total, max(last for _, last in known) - min(first for first, _ in known))
    return total


def _shown(tensor: torch.Tensor) -> Size:
    """Return the bytes of a tensor's elements; those that ``expand`` repeats count once."""
    if not is_strided(tensor):
        return bytes_of(tensor)
    sizes = zip(map(to_expr, tensor.shape), map(to_expr, tensor.stride()), strict=True)
    return to_expr(math.prod((size for size, stride in sizes if stride != 0 or size == 0), start=tensor.element_size()))


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    if not is_strided(tensor):
        return (id(tensor),)
    numbers = (*tensor.shape, *tensor.stride(), tensor.storage_offset(), tensor.element_size())
    return tuple(map(to_expr, numbers))
