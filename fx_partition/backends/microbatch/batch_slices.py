"""Take the rows of a microbatch out of a tensor, and join the rows of all microbatches.

Where the batch is the outermost dimension in memory, the rows of a microbatch are a view. Elsewhere the strides of a
tensor depend on its number of rows, and a stage is compiled for the strides of a microbatch: so the rows are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch

from fx_partition.common.errors import PartitionError
from fx_partition.passes.batching.separability import WAY_OUT
from fx_partition.passes.capture.symbolic_sizes import Size, to_expr

from ..lowering.boundary_strides import memory_order


@dataclass(frozen=True)
class BatchSlices:
    """How to take rows out of one tensor of the graph, and how to join them.

    Attributes:
        dim: the dimension of the batch.
        order: the dimensions from the outermost in memory to the innermost, where rows are copied; () where they are a
            view, or where the joined tensor is contiguous.

    Example::

        >>> rows, x = BatchSlices(1, ()), torch.arange(6).view(2, 3)
        >>> rows.take(x, 0, 2)
        tensor([[0, 1],
                [3, 4]])
        >>> torch.equal(rows.join([rows.take(x, 0, 2), rows.take(x, 2, 1)]), x)
        True
        >>> rows.take_text("x", "i", "n"), rows.join_text("xs", "cat")
        ('x.narrow(1, i, n)', 'cat(xs, 1)')
    """

    dim: int
    order: tuple[int, ...]

    @classmethod
    def of_input(
        cls, value: torch.Tensor, dim: int, batch: Sequence[sympy.Symbol], name: str, *, written: bool
    ) -> BatchSlices:
        """Return how to take rows out of an input.

        Args:
            value: its fake value.
            dim: the dimension of the batch.
            batch: the symbols of the batch.
            name: its name for the user.
            written: whether the graph writes it: then its rows must not be copies.

        Raises:
            PartitionError: the rows must not be copied, or have gaps, and are not a view.
        """
        strides = [to_expr(stride) for stride in value.stride()]
        if all(isinstance(stride, int) or stride.free_symbols.isdisjoint(batch) for stride in strides):
            return cls(dim, ())
        order = memory_order(value)
        if written or not _is_dense(value, order):
            raise PartitionError(
                f"the input {name} cannot be cut along the batch: its rows are not one after another in memory, "
                f"and it is written or has gaps; pass {name}.contiguous() with the batch as dimension 0, or {WAY_OUT}"
            )
        return cls(dim, tuple(order))

    @classmethod
    def of_result(cls, value: torch.Tensor, dim: int) -> BatchSlices:
        """Return how to join a result so that it is laid out as that of the whole batch."""
        order = memory_order(value)
        return cls(dim, () if order == sorted(order) else tuple(order))

    @property
    def _inverse(self) -> list[int]:
        return [self.order.index(d) for d in range(len(self.order))]

    def take(self, tensor: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """Return ``count`` rows from ``first`` on."""
        if not self.order:
            return tensor.narrow(self.dim, first, count)
        part = tensor.permute(self.order).narrow(self.order.index(self.dim), first, count)
        return part.contiguous().permute(self._inverse)

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return all rows in a new tensor."""
        if not self.order:
            return torch.cat(list(parts), self.dim)
        joined = torch.cat([part.permute(self.order) for part in parts], self.order.index(self.dim))
        return joined.permute(self._inverse)

    def take_text(self, name: str, first: str, count: str) -> str:
        """Return `take` as an expression of generated code."""
        if not self.order:
            return f"{name}.narrow({self.dim}, {first}, {count})"
        place, order = self.order.index(self.dim), list(self.order)
        return f"{name}.permute({order}).narrow({place}, {first}, {count}).contiguous().permute({self._inverse})"

    def join_text(self, name: str, cat: str) -> str:
        """Return `join` as an expression of generated code, where ``cat`` is the name of torch.cat."""
        if not self.order:
            return f"{cat}({name}, {self.dim})"
        place, order = self.order.index(self.dim), list(self.order)
        return f"{cat}([_part.permute({order}) for _part in {name}], {place}).permute({self._inverse})"


def _is_dense(value: torch.Tensor, order: Sequence[int]) -> bool:
    expected: Size = 1
    for d in reversed(order):
        if to_expr(value.shape[d]) != 1 and sympy.expand(to_expr(value.stride()[d]) - expected) != 0:
            return False
        expected = to_expr(expected * to_expr(value.shape[d]))
    return True
