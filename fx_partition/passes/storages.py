"""The memory behind a tensor of a trace, also where a tensor is no plain one.

- A tensor of `torch.func` (under vmap, grad or jvp) shows a part of another, whose memory it is.

Example: under ``vmap`` over four rows of eight floats, a tensor of shape ``[8]`` has the 128 bytes of all rows.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from .fake import unwrapped
from .symbols import Size, to_expr


def storage_key(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors that share memory, as long as these live."""
    return int(unwrapped(tensor).untyped_storage()._cdata)


def bytes_of(tensor: torch.Tensor) -> Size:
    """The bytes that a tensor shows."""
    plain = unwrapped(tensor)
    return to_expr(plain.numel() * plain.element_size())


def storage_bytes(tensor: torch.Tensor) -> Size:
    """The bytes of the memory behind a tensor."""
    return to_expr(unwrapped(tensor).untyped_storage().nbytes())
