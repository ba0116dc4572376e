"""How the values of a message travel: a tensor as its bytes, and before it what the receiver cannot know.

Shapes that are the same for every call need no words. Else a header goes first: an int64 tensor with the sizes of all
symbolic dimensions, and with the numbers (sizes and scalars that the graph computes) of the message. A tensor arrives
with the strides that the stages were compiled for: it travels in the order of its memory, without gaps.

Before: ``linear`` of [s0, 256] with strides (1, s0), and ``item``, an int
After:  header ``[4, 17]`` for 4 rows and an item of 17, then 4096 bytes
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fx_partition.passes.symbols import to_expr

from ..strides import is_dense, memory_order
from .schedule import Message, number_type


class Connection(Protocol):
    """Sends and receives; see `team.Team`."""

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> None: ...

    def receive(self, tensor: torch.Tensor, rank: int, tag: int) -> None: ...


@dataclass(frozen=True)
class _Layout:
    """A tensor on its way.

    Attributes:
        shape: the sizes; None for one that the header tells.
        dtype, device: on the receiver's side.
        order: its dimensions from the outermost in memory to the innermost.
        inverse: the place of each dimension in ``order``.
        expanded: dimensions of which all elements are one in memory; one of them travels.
        strides: what to arrive with, where that is not dense; None for one that the header tells.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    device: torch.device
    order: tuple[int, ...]
    inverse: tuple[int, ...]
    expanded: tuple[int, ...]
    strides: tuple[int | None, ...]

    @classmethod
    def of(cls, value: torch.Tensor, device: torch.device) -> _Layout:
        order = tuple(memory_order(value))
        strides = [to_expr(stride) for stride in value.stride()]
        sizes = [to_expr(size) for size in value.shape]
        expanded = tuple(d for d, stride in enumerate(strides) if stride == 0 and sizes[d] != 1)
        return cls(
            shape=tuple(size if isinstance(size, int) else None for size in sizes),
            dtype=value.dtype,
            device=device,
            order=order,
            inverse=tuple(order.index(d) for d in range(len(order))),
            expanded=expanded,
            strides=() if is_dense(value) else tuple(s if isinstance(s, int) else None for s in strides),
        )

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """What travels: a dense tensor, the given one's memory where that is dense already."""
        for dim in self.expanded:
            tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
        return tensor.permute(self.order).contiguous()

    def buffer(self, shape: Sequence[int]) -> torch.Tensor:
        """Memory for what travels."""
        sizes = [min(1, size) if dim in self.expanded else size for dim, size in enumerate(shape)]
        return torch.empty([sizes[dim] for dim in self.order], dtype=self.dtype, device=self.device)

    def unpack(self, tensor: torch.Tensor, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
        """The tensor, with ``strides`` if it is not dense."""
        tensor = tensor.permute(self.inverse)
        if not self.strides:
            return tensor
        spread = torch.empty_strided(tensor.shape, tuple(strides), dtype=self.dtype, device=self.device)
        return spread.copy_(tensor).as_strided(tuple(shape), tuple(strides))

    def unknown(self, tensor: torch.Tensor) -> list[int]:
        """What the header tells of a tensor."""
        actual, known = (*tensor.shape, *tensor.stride()), (*self.shape, *self.strides)
        return [number for number, k in zip(actual, known, strict=False) if k is None]


class Wire:
    """Sends and receives the values of one message.

    Args:
        message: who sends what to whom.
        values: the fake value of each of its nodes.
        device: the device of this rank's stages.
        tag: the first of the two tags that the message takes.
    """

    def __init__(self, message: Message, values: Iterable[Any], device: torch.device, tag: int) -> None:
        values = list(values)
        self.message = message
        self._tag = tag
        self._layouts = [_Layout.of(v, device) if isinstance(v, torch.Tensor) else None for v in values]
        self._kinds = [number_type(value) for value in values]
        self._header_size = sum((*x.shape, *x.strides).count(None) if x else 1 for x in self._layouts)

    def send(self, values: Sequence[Any], connection: Connection) -> None:
        """Start sending; the values must not change before the connection says that they are sent."""
        peer = self.message.target
        if self._header_size:
            header: list[int] = []
            for value, layout in zip(values, self._layouts, strict=True):
                header += [encode_number(value)] if layout is None else layout.unknown(value)
            connection.send(torch.tensor(header, dtype=torch.int64), peer, self._tag)
        for value, layout in zip(values, self._layouts, strict=True):
            if layout is not None and value.numel():
                connection.send(layout.pack(value), peer, self._tag + 1)

    def receive(self, connection: Connection) -> list[Any]:
        """The values, once they are here."""
        peer = self.message.source
        header = torch.empty(self._header_size, dtype=torch.int64)
        if self._header_size:
            connection.receive(header, peer, self._tag)
        told = iter(header.tolist())
        values: list[Any] = []
        for layout, kind in zip(self._layouts, self._kinds, strict=True):
            if layout is None:
                assert kind is not None
                values.append(decode_number(next(told), kind))
                continue
            shape = [next(told) if size is None else size for size in layout.shape]
            strides = [next(told) if stride is None else stride for stride in layout.strides]
            buffer = layout.buffer(shape)
            if buffer.numel():
                connection.receive(buffer, peer, self._tag + 1)
            values.append(layout.unpack(buffer, shape, strides))
        return values


def encode_number(value: float) -> int:
    """A scalar as 64 bits."""
    if isinstance(value, float):
        (bits,) = struct.unpack("<q", struct.pack("<d", value))
        return int(bits)
    return int(value)


def decode_number(bits: int, kind: type) -> float:
    """What `encode_number` encoded."""
    return float(struct.unpack("<d", struct.pack("<q", bits))[0]) if kind is float else kind(bits)
