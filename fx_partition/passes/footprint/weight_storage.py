"""Find the bytes of storages that are weights: tied and viewed parameters count once, disjoint views separately.

Before: tensors ``a = flat[:100]``, ``b = flat[100:]``, ``c = a.t()`` over one storage ``flat``.
After: two weights, ``a`` (shared by a and c) and ``b``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
import torch.fx

from ..capture.symbolic_sizes import Size
from ..capture.tensor_storage import bytes_of, is_strided, span, storage_key


@dataclass(frozen=True)
class Weights:
    """The weights of a graph.

    Attributes:
        of: for each key that holds a tensor, the number of its weight.
        bytes, names: the bytes and the name of each weight.
        parameters: the weights that hold a parameter.
    """

    of: Mapping[str, int]
    bytes: list[Size]
    names: list[str]
    parameters: frozenset[int]


def find_weights(tensors: Mapping[str, tuple[str, torch.Tensor]]) -> Weights:
    """Number the weights of ``tensors``, {key: (name, tensor)}; overlapping parts of a storage are one weight.

    The time is linear in the number of tensors, but for the sort by offset.
    """
    by_storage: dict[Hashable, list[tuple[int, int, str]]] = {}
    for key, (_, tensor) in tensors.items():
        by_storage.setdefault(storage_key(tensor), []).append((*_extent(tensor), key))
    of: dict[str, int] = {}
    sizes: list[Size] = []
    names: list[str] = []
    parameters: set[int] = set()
    for extents in by_storage.values():
        end = -1
        for first, last, key in sorted(extents):
            name, tensor = tensors[key]
            if first >= end or end < 0:
                sizes.append(0)
                names.append(name)
                start, end = first, first
            end = max(end, last)
            sizes[-1] = end - start
            of[key] = len(sizes) - 1
            if isinstance(tensor, torch.nn.Parameter):
                parameters.add(len(sizes) - 1)
    return Weights(of, sizes, names, frozenset(parameters))


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first and the end byte of a tensor in its storage; from 0 to its size for a sparse or opaque tensor.
    """
    if not is_strided(tensor):
        return 0, int(bytes_of(tensor))
    elements = span(tensor.shape, tensor.stride())
    if elements == 0:
        return 0, 0
    first = int(tensor.storage_offset())
    return first * tensor.element_size(), (first + elements) * tensor.element_size()
