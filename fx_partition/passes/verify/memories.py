"""The storages that are there before a graph runs: weights, and inputs; what overlaps is one of them."""

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
from ..capture.tensor_storage import bytes_of, is_strided, span, storage_key
from ..capture.tensor_subclasses import plain_tensors

WEIGHT, INPUT, MADE = "weight", "input", "made"


@dataclass
class Memory:
    """One storage.

    Attributes:
        name: of what holds it first.
        bytes: its size; symbolic where the graph is.
        kind: WEIGHT, INPUT or MADE.
        maker: the node that makes it.
        made_at: the place of that among the runs; -1 for what is there before.
        is_parameter, is_written, is_returned: what it is, and what the graph does with it.
    """

    name: str
    bytes: Size
    kind: str
    maker: torch.fx.Node | None = None
    made_at: int = -1
    is_parameter: bool = False
    is_written: bool = False
    is_returned: bool = False

    @property
    def is_activation(self) -> bool:
        return self.kind == MADE or (self.kind == INPUT and not self.is_written)

    @property
    def is_state(self) -> bool:
        return self.is_written and not self.is_activation and not self.is_parameter

    @property
    def is_of_session(self) -> bool:
        """Whether each session has one of its own: a state that no caller passes in."""
        return self.is_state and self.kind == WEIGHT


def weight_memories(tensors: Mapping[Any, torch.Tensor]) -> tuple[list[Memory], dict[Any, int]]:
    """Return the memories of real tensors, and the number of that of each; overlapping stretches are one.

    Example: ``flat[:100]``, ``flat[100:]`` and ``flat[:100].t()`` are two memories.
    """
    by_storage: dict[Hashable, list[tuple[int, int, int, Any]]] = {}
    for place, (key, tensor) in enumerate(tensors.items()):
        for plain in plain_tensors(tensor):
            stretch = _stretch(plain) or (0, int(bytes_of(plain)))
            by_storage.setdefault(storage_key(plain), []).append((*stretch, place, key))
    memories: list[Memory] = []
    number_of: dict[Any, int] = {}
    for found in by_storage.values():
        here, end = -1, -1
        for first, last, _, key in sorted(found, key=lambda entry: entry[:3]):
            if here < 0 or first >= end:
                memories.append(Memory(str(key), 0, WEIGHT))
                here = len(memories) - 1
                end = first
            memories[here].bytes += max(end, last) - end
            end = max(end, last)
            memories[here].is_parameter |= isinstance(tensors[key], torch.nn.Parameter)
            here = number_of[key] = _joined(memories, number_of, number_of.get(key, here), here)
    return memories, number_of


def _joined(memories: list[Memory], number_of: dict[Any, int], kept: int, other: int) -> int:
    """Make two memories one, as a subclass has inner tensors in both, and return its number."""
    if kept != other:
        gone = memories.pop(other)
        memories[kept].bytes += gone.bytes
        memories[kept].is_parameter |= gone.is_parameter
        number_of |= {key: kept for key, number in number_of.items() if number == other}
        number_of |= {key: number - 1 for key, number in number_of.items() if number > other}
        kept -= kept > other
    return kept


def input_memories(
    captured: CapturedGraph, weight_of: Mapping[torch.fx.Node, int], memories: list[Memory]
) -> dict[int, int]:
    """Return the memory of each tensor of the inputs, by the tensor's id; new ones are appended to ``memories``.

    Inputs that overlap are one memory, as a write to one is seen in the other; one that overlaps a weight is that.
    """
    by_storage: dict[Hashable, list[tuple[torch.fx.Node, torch.Tensor]]] = {}
    for node in captured.gm.graph.find_nodes(op="placeholder"):
        for leaf in pytree.tree_leaves(captured.values.get(node)):
            if isinstance(leaf, torch.Tensor):
                by_storage.setdefault(storage_key(leaf), []).append((node, leaf))
    number_of: dict[int, int] = {}
    for sharing in by_storage.values():
        for group in _overlapping(sharing):
            inputs = [(node, leaf) for node, leaf in group if node not in weight_of]
            weights = {weight_of[node] for node, _ in group if node in weight_of}
            if not inputs:
                continue
            if len(weights) > 1:
                raise UnreadableError(f"the input {inputs[0][0].name} shows the memory of several weights")
            if weights:
                number = weights.pop()
            else:
                first = inputs[0][0]
                size = _shown_together([leaf for _, leaf in inputs])
                memories.append(Memory(captured.names.get(first, first.name), size, INPUT))
                number = len(memories) - 1
            number_of |= {id(leaf): number for _, leaf in inputs}
    return number_of


def _overlapping(
    sharing: list[tuple[torch.fx.Node, torch.Tensor]],
) -> list[list[tuple[torch.fx.Node, torch.Tensor]]]:
    """Tensors of one storage, apart where their stretches are; where a size is symbolic they may overlap."""
    stretches = [_stretch(leaf) for _, leaf in sharing]
    if len(sharing) == 1 or None in stretches:
        return [sharing]
    order = sorted(range(len(sharing)), key=lambda i: (stretches[i], i))
    groups: list[list[int]] = []
    end = -1
    for i in order:
        first, last = stretches[i] or (0, 0)
        if first >= end:
            groups.append([])
        groups[-1].append(i)
        end = max(end, last)
    return [[sharing[i] for i in sorted(group)] for group in groups]


def _stretch(tensor: torch.Tensor) -> tuple[int, int] | None:
    """The first and the end byte of a tensor in its storage; None where that is no pair of numbers."""
    if not is_strided(tensor):
        size = bytes_of(tensor)
        return (0, size) if isinstance(size, int) else None
    sizes, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
    if any(not isinstance(to_expr(n), int) for n in (*sizes, *strides, offset) if isinstance(n, torch.SymInt)):
        return None
    if 0 in sizes:
        return 0, 0
    size = tensor.element_size()
    return int(offset) * size, (int(offset) + span(sizes, strides)) * size


def _shown_together(tensors: Sequence[torch.Tensor]) -> Size:
    """The bytes that overlapping tensors show: of each layout once, what is repeated once, at most the stretch."""
    layouts: dict[Any, Size] = {}
    for tensor in tensors:
        if not is_strided(tensor):
            layouts[id(tensor)] = bytes_of(tensor)
            continue
        sizes, strides = [to_expr(n) for n in tensor.shape], [to_expr(n) for n in tensor.stride()]
        moved = [n for n, step in zip(sizes, strides, strict=True) if step != 0 or n == 0]
        key = (*sizes, *strides, to_expr(tensor.storage_offset()), tensor.element_size())
        layouts[key] = math.prod(moved, start=tensor.element_size())
    total = add_up(layouts.values())
    found = [stretch for tensor in tensors if (stretch := _stretch(tensor)) is not None]
    if isinstance(total, int) and len(found) == len(tensors):
        return min(total, max(last for _, last in found) - min(first for first, _ in found))
    return total
