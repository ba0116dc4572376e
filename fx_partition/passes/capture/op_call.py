"""One call of a leaf operator on fake tensors, and arithmetic on its sizes without guards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from .operators import schema_of

# An int, or a SymInt where the graph is symbolic. Never compare two: a comparison would add a guard.
Bytes: TypeAlias = "int | torch.SymInt"


@dataclass(frozen=True)
class LeafCall:
    """One call of an ATen operator on fake tensors.

    Attributes:
        func: the operator.
        args, kwargs: its arguments.
        out: its result.
        threads: the number of threads that torch uses.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    threads: int

    def __getitem__(self, name: str) -> Any:
        """Return the argument that the schema calls ``name``; its default if the call leaves it out."""
        for position, argument in enumerate(schema_of(self.func).arguments):
            if argument.name == name:
                if not argument.kwarg_only and position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, argument.default_value)
        return None  # only another overload has this argument

    @property
    def first(self) -> torch.Tensor:
        """Return the first argument, or the first tensor of a list of tensors."""
        value = self.args[0] if self.args else next(iter(self.kwargs.values()))
        tensor = value if isinstance(value, torch.Tensor) else value[0]
        assert isinstance(tensor, torch.Tensor)
        return tensor

    @property
    def result(self) -> torch.Tensor:
        """Return the result, or the first of several."""
        tensor = self.out if isinstance(self.out, torch.Tensor) else self.out[0]
        assert isinstance(tensor, torch.Tensor)
        return tensor


def nbytes(tensor: torch.Tensor | None) -> Bytes:
    """Return the bytes of a tensor's elements; 0 for None."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def largest(*sizes: Bytes) -> Bytes:
    """Return the largest of sizes and 0, without a guard."""
    result: Bytes = 0
    for size in sizes:
        result = torch.sym_max(result, size)  # type: ignore[no-untyped-call]
    return result


def smallest(first: Bytes, *sizes: Bytes) -> Bytes:
    """Return the smallest of sizes, without a guard."""
    for size in sizes:
        first = torch.sym_min(first, size)  # type: ignore[no-untyped-call]
    return first


def product(sizes: Iterable[Bytes]) -> Bytes:
    """Return the product of sizes."""
    result: Bytes = 1
    for size in sizes:
        result = result * size
    return result


def round_up(size: Bytes, multiple: int) -> Bytes:
    """Return the least multiple that is not below a size."""
    return (size + (multiple - 1)) // multiple * multiple


def likely(condition: Any) -> bool:
    """Return a condition as it was for the sizes of the trace, where a kernel chooses its path by size.

    Call it only while guards are suppressed. A condition on a size that only a run can tell counts as false.
    """
    try:
        return bool(condition)
    except GuardOnDataDependentSymNode:
        return False
