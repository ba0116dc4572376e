"""Refer to the storage of each tensor of a graph: a value, a weight, or a part of a weight that a view shows.

A node's places have the structure of its value: a `Place` for each tensor of it, None for anything else.

Before: ``w = get_attr (64 x 16 floats);  a, b = w.chunk(2);  linear = F.linear(x, a)``
After:  w at ``Place("w", 0)``, a and b at ``Place("w", 0, shown=2048)``, linear at ``Place("v", 1)``

The bytes of two views of one weight add up, even if they overlap or if two steps read the same view. So the part of a
weight that a partition holds may be counted as too large, but never as more than the whole weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ..capture.symbolic_sizes import Size, smallest
from ..capture.tensor_storage import bytes_of


class Place(NamedTuple):
    """The storage of a tensor: kind "v" is value ``number``, "w" is weight ``number``.

    ``shown`` is the bytes of a weight that a view shows; None means the whole weight.
    """

    kind: str
    number: int
    shown: Size | None = None


def is_place(leaf: Any) -> bool:
    return isinstance(leaf, Place)


def leaf_places(places: Any) -> Iterator[Place]:
    """Yield the places of a node's tensors, in pytree order."""
    for leaf in pytree.tree_leaves(places, is_leaf=is_place):
        if leaf is not None:
            yield leaf


def tensor_places(value: Any, places: Any) -> dict[int, Place]:
    """Return the place of each tensor of a node's value, by the tensor's id."""
    leaves = pytree.tree_leaves(value)
    pairs = zip(leaves, pytree.tree_leaves(places, is_leaf=is_place), strict=False)
    return {id(leaf): place for leaf, place in pairs if isinstance(leaf, torch.Tensor)}


def seen_through(place: Place, source: torch.Tensor, view: torch.Tensor, whole: Size) -> Place:
    """Return the place of a view of ``source``, which is at ``place``; a view as large as its source shows as much.

    Args:
        whole: the bytes of the weight, if ``place`` is in one.
    """
    if place.kind != "w" or (size := bytes_of(view)) == bytes_of(source):
        return place
    shown = smallest(whole, size)  # a view that repeats elements may be larger than the weight
    return place._replace(shown=None if shown == whole else shown)


def by_kind(places: Iterable[Place]) -> tuple[frozenset[int], frozenset[int]]:
    """Return the numbers of the values, and of the weights, among places."""
    places = list(places)
    values, weights = (frozenset(place.number for place in places if place.kind == kind) for kind in "vw")
    return values, weights


def values_at(places: Any) -> dict[int, None]:
    """Return the numbers of the values among places, each once, in order."""
    return dict.fromkeys(place.number for place in leaf_places(places) if place.kind == "v")
