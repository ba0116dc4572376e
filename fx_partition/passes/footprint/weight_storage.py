"""Find the bytes of storages that are weights: tied and viewed parameters count once, disjoint views separately.

A tensor subclass (a quantised weight) counts by its inner tensors, which together are one weight.

Before: tensors ``a = flat[:100]``, ``b = flat[100:]``, ``c = a.t()`` over one storage ``flat``.
After: two weights, ``a`` (shared by a and c) and ``b``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.fx

from ..capture.symbolic_sizes import Size
from ..capture.tensor_storage import bytes_of, is_strided, span, storage_key
from ..capture.tensor_subclasses import plain_tensors


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
    stretches = list(_stretches(tensors))
    parts: dict[str, list[int]] = {}
    for number, (_, keys) in enumerate(stretches):
        for key in keys:
            parts.setdefault(key, []).append(number)
    of: dict[str, int] = {}
    sizes: list[Size] = []
    names: list[str] = []
    parameters: set[int] = set()
    for _, keys in stretches:
        if keys[0] in of:  # a stretch of a subclass whose weight is there
            continue
        sizes.append(0)
        names.append(tensors[keys[0]][0])
        counted: set[int] = set()
        waiting = [keys[0]]
        while waiting:
            key = waiting.pop()
            if key in of:
                continue
            of[key] = len(sizes) - 1
            if isinstance(tensors[key][1], torch.nn.Parameter):
                parameters.add(len(sizes) - 1)
            for number in parts[key]:
                if number not in counted:
                    counted.add(number)
                    sizes[-1] = sizes[-1] + stretches[number][0]
                    waiting += stretches[number][1]
    return Weights(of, sizes, names, frozenset(parameters))


def _stretches(tensors: Mapping[str, tuple[str, torch.Tensor]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the bytes of each stretch of a storage that tensors fill together, and the keys of these tensors."""
    by_storage: dict[Hashable, list[tuple[int, int, str]]] = {}
    for key, (_, tensor) in tensors.items():
        for plain in plain_tensors(tensor):
            by_storage.setdefault(storage_key(plain), []).append((*_extent(plain), key))
    for extents in by_storage.values():
        start, end, keys = 0, -1, list[str]()
        for first, last, key in sorted(extents):
            if keys and first >= end:
                yield end - start, keys
                keys = []
            if not keys:
                start, end = first, first
            keys.append(key)
            end = max(end, last)
        yield end - start, keys


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
