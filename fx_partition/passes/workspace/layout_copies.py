"""What the rules of `workspace.rules` are written in: one call of a leaf operator, and sizes without guards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..capture.operators import schema_of

# An int, or a SymInt where the graph is symbolic. Arithmetic only: a comparison would be a guard.
Bytes: TypeAlias = "int | torch.SymInt"


@dataclass(frozen=True)
class LeafCall:
    """One call of an ATen operator: its arguments are fake tensors, its result is in ``out``."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    threads: int

    def __getitem__(self, name: str) -> Any:
        """The argument that the schema calls ``name``, its default if the call does not give it."""
        for position, argument in enumerate(schema_of(self.func).arguments):
            if argument.name == name:
                if not argument.kwarg_only and position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, argument.default_value)
        return None  # another overload has it

    @property
    def first(self) -> torch.Tensor:
        value = self.args[0] if self.args else next(iter(self.kwargs.values()))
        tensor = value if isinstance(value, torch.Tensor) else value[0]
        assert isinstance(tensor, torch.Tensor)
        return tensor

    @property
    def result(self) -> torch.Tensor:
        tensor = self.out if isinstance(self.out, torch.Tensor) else self.out[0]
        assert isinstance(tensor, torch.Tensor)
        return tensor


def never(call: LeafCall) -> bool:
    return False


def always(call: LeafCall) -> bool:
    return True


def of_elements(call: LeafCall) -> Bytes:
    """As many operations as the first operand has elements."""
    return call.first.numel()


@dataclass(frozen=True)
class WorkspaceRule:
    """What the CPU kernel of one operator allocates beyond its outputs.

    Attributes:
        bytes: from the call to the bytes at the kernel's peak, beyond its outputs (never less than zero).
        source: the file of PyTorch or oneDNN, and what is allocated there.
        varies: whether a call takes more or less by the processor or by the libraries that torch was built with: then
            ``bytes`` is an estimate, and `kernel_memory` measures what this machine takes. Must not compare sizes.
        flops: floating-point operations of a call, about: those that take too many are not measured.
        contents: for each argument whose numbers decide what is allocated, the number that takes the most.
    """

    bytes: Callable[[LeafCall], Bytes]
    source: str
    varies: Callable[[LeafCall], bool] = never
    flops: Callable[[LeafCall], Bytes] = of_elements
    contents: Mapping[str, Callable[[LeafCall], Bytes]] = field(default_factory=dict)


def nbytes(tensor: torch.Tensor | None) -> Bytes:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def largest(*sizes: Bytes) -> Bytes:
    result: Bytes = 0
    for size in sizes:
        result = torch.sym_max(result, size)  # type: ignore[no-untyped-call]
    return result


def smallest(first: Bytes, *sizes: Bytes) -> Bytes:
    for size in sizes:
        first = torch.sym_min(first, size)  # type: ignore[no-untyped-call]
    return first


def product(sizes: Iterable[Bytes]) -> Bytes:
    result: Bytes = 1
    for size in sizes:
        result = result * size
    return result


def round_up(size: Bytes, multiple: int) -> Bytes:
    return (size + (multiple - 1)) // multiple * multiple


def likely(condition: Any) -> bool:
    """The condition at the sizes the graph was traced with, where a kernel chooses its path by size.

    Called while guards are suppressed. A condition on a size known only at run time is taken as false.
    """
    try:
        return bool(condition)
    except GuardOnDataDependentSymNode:
        return False


def copy_unless(ready: bool, tensor: torch.Tensor | None) -> Bytes:
    """The bytes of ``tensor.contiguous(...)``, which is a copy unless the tensor is laid out so already."""
    return 0 if ready or tensor is None else nbytes(tensor) + transpose_buffer(tensor)


def transpose_buffer(tensor: torch.Tensor) -> Bytes:
    """What copying a matrix takes beyond the copy: blocks of 60 x 60 in ATen/native/Copy.cpp, copy_transpose."""
    return 3600 * tensor.element_size() if tensor.dim() == 2 and not tensor.is_contiguous() else 0


def densified(tensor: torch.Tensor | None) -> Bytes:
    """The bytes that ``tensor.contiguous()`` allocates."""
    return 0 if tensor is None else copy_unless(tensor.is_contiguous(), tensor)


def channels_last(tensor: torch.Tensor) -> bool:
    """Whether ``suggest_memory_format()`` is ChannelsLast or ChannelsLast3d: by strides, as c10/core/MemoryFormat.h."""
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
    """The bytes that ``tensor.contiguous(ChannelsLast)`` allocates."""
    return copy_unless(tensor.is_contiguous(memory_format=_LAST[tensor.dim()]), tensor)


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def as_suggested(tensor: torch.Tensor) -> Bytes:
    """The bytes that ``tensor.contiguous(tensor.suggest_memory_format())`` allocates."""
    return 0 if channels_last(tensor) else densified(tensor)


def dim_of(call: LeafCall, name: str = "dim") -> int:
    """A dimension argument, made positive."""
    dim: int = call[name]
    return dim % max(call.first.dim(), 1)


def merges(tensor: torch.Tensor, dims: Sequence[int]) -> bool:
    """Whether these dimensions, in this order, are one run through memory, so that reshaping them copies nothing."""
    wide = [d for d in dims if not likely(tensor.size(d) == 1)]
    return all(likely(tensor.stride(i) == tensor.stride(j) * tensor.size(j)) for i, j in itertools.pairwise(wide))
