"""Encode the values of a message: a header with what the receiver cannot know, then each tensor as its bytes.

Sizes that are the same in every call, or that follow from the sizes of the graph's inputs (rank 0 sends these to all
ranks), are not sent. If a message has other sizes (data-dependent ones) or numbers (scalars that the graph computes),
an int64 tensor with them goes first, the header. A tensor arrives with the strides that the stages were compiled for:
it is sent in the order of its memory, without gaps.

Before: ``nonzero`` of [u0, 2], and ``item``, an int
After:  header ``[17, 4]`` for 17 rows and an item of 4, then 272 bytes
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sympy
import torch

from fx_partition.passes.capture.symbolic_sizes import Evaluator, to_expr

from ..devices.home_device import place
from ..lowering.boundary_strides import is_dense, memory_order
from .schedule import Message, number_type


class Receive(Protocol):
    """A receive that has started; see `rank_team.PendingReceive`."""

    def wait(self) -> None: ...


class Transport(Protocol):
    """Sends and receives tensors; see `rank_team.Team`."""

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> None: ...

    def post(self, tensor: torch.Tensor, rank: int, tag: int) -> Receive: ...


@dataclass(frozen=True)
class _WireLayout:
    """The layout of a tensor, as it is sent and as it arrives.

    Attributes:
        shape: the sizes, over the symbols of the graph.
        dtype, device: those of the tensor that arrives.
        order: its dimensions from the outermost in memory to the innermost.
        inverse: the position of each dimension in ``order``.
        expanded: dimensions of stride 0, of which a single element is sent.
        strides: the strides of the tensor that arrives, where it is not dense.
    """

    shape: tuple[int | sympy.Expr, ...]
    dtype: torch.dtype
    device: torch.device
    order: tuple[int, ...]
    inverse: tuple[int, ...]
    expanded: tuple[int, ...]
    strides: tuple[int | sympy.Expr, ...]

    @classmethod
    def of(cls, value: torch.Tensor, device: torch.device) -> _WireLayout:
        order = tuple(memory_order(value))
        strides = [to_expr(stride) for stride in value.stride()]
        sizes = [to_expr(size) for size in value.shape]
        return cls(
            shape=tuple(sizes),
            dtype=value.dtype,
            device=place(value.device, device, device),
            order=order,
            inverse=tuple(order.index(d) for d in range(len(order))),
            expanded=tuple(d for d, stride in enumerate(strides) if stride == 0 and sizes[d] != 1),
            strides=() if is_dense(value) else tuple(strides),
        )

    @property
    def sizes(self) -> tuple[int | sympy.Expr, ...]:
        """The numbers that a receiver must know: sizes, then strides where the tensor is not dense."""
        return (*self.shape, *self.strides)

    def actual(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """Return `sizes` for a real tensor."""
        return (*tensor.shape, *tensor.stride())[: len(self.sizes)]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the dense tensor to send; it shares the memory of ``tensor`` where that is dense already."""
        for dim in self.expanded:
            tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
        return tensor.permute(self.order).contiguous()

    def buffer(self, sizes: Sequence[int]) -> torch.Tensor:
        """Return an empty tensor to receive into."""
        shape = [min(1, sizes[dim]) if dim in self.expanded else sizes[dim] for dim in self.order]
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def unpack(self, tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Return the tensor with its own shape and strides, from the received one."""
        tensor = tensor.permute(self.inverse)
        if not self.strides:
            return tensor
        shape, strides = tuple(sizes[: len(self.shape)]), tuple(sizes[len(self.shape) :])
        spread = torch.empty_strided(tensor.shape, strides, dtype=self.dtype, device=self.device)
        return spread.copy_(tensor).as_strided(shape, strides)


class MessageCodec:
    """Sends and receives the values of one message.

    Args:
        message: the sender, the receiver and the nodes.
        values: the fake value of each node.
        device: the device of this rank's stages; a value that the trace has on another type of device stays there.
        tag: the first of the two tags of the message.
        symbols: the symbols of the sizes that every rank knows.
    """

    def __init__(
        self,
        message: Message,
        values: Iterable[Any],
        device: torch.device,
        tag: int,
        symbols: Sequence[sympy.Symbol] = (),
    ) -> None:
        values = list(values)
        self.message = message
        self._tag = tag
        self._layouts = [_WireLayout.of(v, device) if isinstance(v, torch.Tensor) else None for v in values]
        self._kinds = [number_type(value) for value in values]
        known = set(symbols)

        def is_in_header(size: int | sympy.Expr) -> bool:
            return not isinstance(size, int) and not size.free_symbols <= known

        self._in_header = [tuple(map(is_in_header, layout.sizes)) if layout else (True,) for layout in self._layouts]
        self._header_size = sum(map(sum, self._in_header))
        sizes = [
            0 if in_header else size
            for layout, header_flags in zip(self._layouts, self._in_header, strict=True)
            if layout
            for size, in_header in zip(layout.sizes, header_flags, strict=True)
        ]
        evaluator = Evaluator(sizes)
        self._sizes = functools.lru_cache(maxsize=1024)(
            lambda *numbers: evaluator(dict(zip(symbols, numbers, strict=True)))
        )

    @property
    def has_header(self) -> bool:
        """Whether the receiver must wait for a header before it can allocate the tensors."""
        return self._header_size > 0

    def send(self, values: Sequence[Any], transport: Transport) -> None:
        """Start sending; the values must not change before the transport has sent them."""
        peer = self.message.target
        if self.has_header:
            header: list[int] = []
            for value, layout, header_flags in zip(values, self._layouts, self._in_header, strict=True):
                sizes = layout.actual(value) if layout else (encode_number(value),)
                header += [size for size, in_header in zip(sizes, header_flags, strict=True) if in_header]
            transport.send(torch.tensor(header, dtype=torch.int64), peer, self._tag)
        for value, layout in zip(values, self._layouts, strict=True):
            if layout is not None and value.numel():
                transport.send(layout.pack(value), peer, self._tag + 1)

    def post(self, transport: Transport, numbers: Sequence[int]) -> PendingMessage:
        """Start receiving the values; wait for the header first, if there is one.

        Args:
            numbers: the value of each of ``symbols``.
        """
        peer = self.message.source
        header = torch.empty(self._header_size, dtype=torch.int64)
        if self.has_header:
            transport.post(header, peer, self._tag).wait()
        from_header, known = iter(header.tolist()), iter(self._sizes(*numbers))
        parts: list[_PendingValue] = []
        for layout, kind, header_flags in zip(self._layouts, self._kinds, self._in_header, strict=True):
            if layout is None:
                assert kind is not None
                parts.append(_PendingValue(decode_number(next(from_header), kind)))
                continue
            computed = [next(known) for _ in header_flags]
            sizes = [next(from_header) if flag else size for size, flag in zip(computed, header_flags, strict=True)]
            buffer = layout.buffer(sizes)
            arrival = transport.post(buffer, peer, self._tag + 1) if buffer.numel() else None
            parts.append(_PendingValue(buffer, layout, sizes, arrival))
        return PendingMessage(parts)


@dataclass(frozen=True)
class _PendingValue:
    """A number that has arrived, or a tensor that is being received."""

    value: Any
    layout: _WireLayout | None = None
    sizes: Sequence[int] = ()
    arrival: Receive | None = None


class PendingMessage:
    """A message that is being received."""

    def __init__(self, parts: Sequence[_PendingValue]) -> None:
        self._parts = parts

    def wait(self) -> list[Any]:
        """Wait until all values have arrived and return them."""
        for part in self._parts:
            if part.arrival:
                part.arrival.wait()
        return [part.layout.unpack(part.value, part.sizes) if part.layout else part.value for part in self._parts]


def encode_number(value: float) -> int:
    """Encode a scalar in 64 bits."""
    if isinstance(value, float):
        (bits,) = struct.unpack("<q", struct.pack("<d", value))
        return int(bits)
    return int(value)


def decode_number(bits: int, kind: type) -> float:
    """Decode a scalar that `encode_number` encoded."""
    return float(struct.unpack("<d", struct.pack("<q", bits))[0]) if kind is float else kind(bits)
