"""How the values of a message travel: a tensor as its bytes, and before it what the receiver cannot know.

Sizes that are the same for every call, or follow from the sizes of the graph's inputs, which rank 0 tells all ranks,
need no words. Else a header goes first: an int64 tensor with the sizes that only the graph itself finds out, and with
the numbers (scalars that the graph computes) of the message. A tensor arrives with the strides that the stages were
compiled for: it travels in the order of its memory, without gaps.

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


class Arrival(Protocol):
    """A receive that was posted."""

    def wait(self) -> None: ...


class Connection(Protocol):
    """Sends and receives; see `rank_team.Team`."""

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> None: ...

    def post(self, tensor: torch.Tensor, rank: int, tag: int) -> Arrival: ...


@dataclass(frozen=True)
class _Layout:
    """A tensor on its way.

    Attributes:
        shape: the sizes, over the symbols of the graph.
        dtype, device: on the receiver's side.
        order: its dimensions from the outermost in memory to the innermost.
        inverse: the place of each dimension in ``order``.
        expanded: dimensions of which all elements are one in memory; one of them travels.
        strides: what to arrive with, where that is not dense.
    """

    shape: tuple[int | sympy.Expr, ...]
    dtype: torch.dtype
    device: torch.device
    order: tuple[int, ...]
    inverse: tuple[int, ...]
    expanded: tuple[int, ...]
    strides: tuple[int | sympy.Expr, ...]

    @classmethod
    def of(cls, value: torch.Tensor, device: torch.device) -> _Layout:
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
        """All that a receiver must know: sizes, then strides where they count."""
        return (*self.shape, *self.strides)

    def actual(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """`sizes` of a tensor."""
        return (*tensor.shape, *tensor.stride())[: len(self.sizes)]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """What travels: a dense tensor, the given one's memory where that is dense already."""
        for dim in self.expanded:
            tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
        return tensor.permute(self.order).contiguous()

    def buffer(self, sizes: Sequence[int]) -> torch.Tensor:
        """Memory for what travels."""
        shape = [min(1, sizes[dim]) if dim in self.expanded else sizes[dim] for dim in self.order]
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def unpack(self, tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """The tensor as it was sent."""
        tensor = tensor.permute(self.inverse)
        if not self.strides:
            return tensor
        shape, strides = tuple(sizes[: len(self.shape)]), tuple(sizes[len(self.shape) :])
        spread = torch.empty_strided(tensor.shape, strides, dtype=self.dtype, device=self.device)
        return spread.copy_(tensor).as_strided(shape, strides)


class Wire:
    """Sends and receives the values of one message.

    Args:
        message: who sends what to whom.
        values: the fake value of each of its nodes.
        device: the device of this rank's stages; what the trace has on a device of another kind arrives there.
        tag: the first of the two tags that the message takes.
        symbols: of the sizes that every rank is told.
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
        self._layouts = [_Layout.of(v, device) if isinstance(v, torch.Tensor) else None for v in values]
        self._kinds = [number_type(value) for value in values]
        known = set(symbols)

        def is_told(size: int | sympy.Expr) -> bool:
            return not isinstance(size, int) and not size.free_symbols <= known

        self._told = [tuple(map(is_told, layout.sizes)) if layout else (True,) for layout in self._layouts]
        self._header_size = sum(map(sum, self._told))
        sizes = [
            0 if told else size
            for layout, flags in zip(self._layouts, self._told, strict=True)
            if layout
            for size, told in zip(layout.sizes, flags, strict=True)
        ]
        evaluator = Evaluator(sizes)
        self._sizes = functools.lru_cache(maxsize=1024)(
            lambda *numbers: evaluator(dict(zip(symbols, numbers, strict=True)))
        )

    @property
    def has_header(self) -> bool:
        """Whether the receiver must wait for a header before it can make room for the rest."""
        return self._header_size > 0

    def send(self, values: Sequence[Any], connection: Connection) -> None:
        """Start sending; the values must not change before the connection says that they are sent."""
        peer = self.message.target
        if self.has_header:
            header: list[int] = []
            for value, layout, flags in zip(values, self._layouts, self._told, strict=True):
                sizes = layout.actual(value) if layout else (encode_number(value),)
                header += [size for size, told in zip(sizes, flags, strict=True) if told]
            connection.send(torch.tensor(header, dtype=torch.int64), peer, self._tag)
        for value, layout in zip(values, self._layouts, strict=True):
            if layout is not None and value.numel():
                connection.send(layout.pack(value), peer, self._tag + 1)

    def post(self, connection: Connection, numbers: Sequence[int]) -> Posted:
        """Make room for the values, and wait for a header if there is one.

        Args:
            numbers: the sizes that every rank was told, for each of ``symbols``.
        """
        peer = self.message.source
        header = torch.empty(self._header_size, dtype=torch.int64)
        if self.has_header:
            connection.post(header, peer, self._tag).wait()
        told, known = iter(header.tolist()), iter(self._sizes(*numbers))
        parts: list[_Part] = []
        for layout, kind, flags in zip(self._layouts, self._kinds, self._told, strict=True):
            if layout is None:
                assert kind is not None
                parts.append(_Part(decode_number(next(told), kind)))
                continue
            computed = [next(known) for _ in flags]
            sizes = [next(told) if flag else size for size, flag in zip(computed, flags, strict=True)]
            buffer = layout.buffer(sizes)
            arrival = connection.post(buffer, peer, self._tag + 1) if buffer.numel() else None
            parts.append(_Part(buffer, layout, sizes, arrival))
        return Posted(parts)


@dataclass(frozen=True)
class _Part:
    """A value on its way, or one that is here."""

    value: Any
    layout: _Layout | None = None
    sizes: Sequence[int] = ()
    arrival: Arrival | None = None


class Posted:
    """A message that is expected."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts

    def wait(self) -> list[Any]:
        """The values, once they are here."""
        for part in self._parts:
            if part.arrival:
                part.arrival.wait()
        return [part.layout.unpack(part.value, part.sizes) if part.layout else part.value for part in self._parts]


def encode_number(value: float) -> int:
    """A scalar as 64 bits."""
    if isinstance(value, float):
        (bits,) = struct.unpack("<q", struct.pack("<d", value))
        return int(bits)
    return int(value)


def decode_number(bits: int, kind: type) -> float:
    """What `encode_number` encoded."""
    return float(struct.unpack("<d", struct.pack("<q", bits))[0]) if kind is float else kind(bits)
