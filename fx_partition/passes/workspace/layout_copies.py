"""Count the bytes of the copies that ATen makes of operands in another memory layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ..capture.op_call import Bytes, LeafCall, likely, nbytes


def copy_unless(ready: bool, tensor: torch.Tensor | None) -> Bytes:
    """Return the bytes that ``tensor.contiguous(...)`` allocates: a copy, unless the tensor has that layout already."""
    return 0 if ready or tensor is None else nbytes(tensor) + transpose_buffer(tensor)


def transpose_buffer(tensor: torch.Tensor) -> Bytes:
    """Return the scratch of copying a matrix: blocks of 60 x 60 in ATen/native/Copy.cpp, copy_transpose."""
    return 3600 * tensor.element_size() if tensor.dim() == 2 and not tensor.is_contiguous() else 0


def densified(tensor: torch.Tensor | None) -> Bytes:
    """Return the bytes that ``tensor.contiguous()`` allocates."""
    return 0 if tensor is None else copy_unless(tensor.is_contiguous(), tensor)


def channels_last(tensor: torch.Tensor) -> bool:
    """Whether ``suggest_memory_format()`` is ChannelsLast or ChannelsLast3d, by strides (c10/core/MemoryFormat.h)."""
    orders = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}
    if tensor.dim() not in orders or not tensor.is_contiguous(memory_format=_LAST[tensor.dim()]):
        return False
    sizes, strides = tensor.shape, tensor.stride()
    least: Bytes = 0
    for d in orders[tensor.dim()]:
        if likely(strides[d] < least) or (d == 0 and likely(strides[1] == least)):
            return False
        least = strides[d] * sizes[d]
    return True


def copy_as_last(tensor: torch.Tensor) -> Bytes:
    """Return the bytes that ``tensor.contiguous(ChannelsLast)`` allocates."""
    return copy_unless(tensor.is_contiguous(memory_format=_LAST[tensor.dim()]), tensor)


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def as_suggested(tensor: torch.Tensor) -> Bytes:
    """Return the bytes that ``tensor.contiguous(tensor.suggest_memory_format())`` allocates."""
    return 0 if channels_last(tensor) else densified(tensor)


def dim_of(call: LeafCall, name: str = "dim") -> int:
    """Return a dimension argument as a number from 0 on."""
    dim: int = call[name]
    return dim % max(call.first.dim(), 1)


def merges(tensor: torch.Tensor, dims: Sequence[int]) -> bool:
    """Whether these dimensions, in this order, can become one without a copy, as they are one run through memory."""
    wide = [d for d in dims if not likely(tensor.size(d) == 1)]
    return all(likely(tensor.stride(i) == tensor.stride(j) * tensor.size(j)) for i, j in itertools.pairwise(wide))
