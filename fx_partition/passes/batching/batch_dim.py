"""The terms of the rules in `op_rules`: one call of an operator, and the dimension of the batch in its tensors.

Terms
-----
batch
    The symbol B of the dimension along which the graph may be cut.
row
    The elements that belong to one index of the batch.
shared
    A tensor that is the same for every row: its shape does not contain B, and no batched value went into it.
batched
    A tensor whose row i depends on row i of the batched inputs alone. One dimension has the size
    ``outer * B * inner`` (B itself where both are 1; more where a view has flattened it), and no other contains B::

        [B, S, D]           Batched(0)
        [B, S, D] -> [B*S, D]    Batched(0, inner=S)
        [S, B, D] -> [S*B, D]    Batched(0, outer=S)
numbered
    A batched tensor whose row i holds i, as ``arange(B)`` does. In a microbatch the numbers would be others, so it may
    only pass through views, and pick row i of a batched tensor: ``x[arange(B), last]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch

from ..capture.fake_tensors import symbols_in
from ..capture.op_call import LeafCall
from ..capture.operators import schema_of
from ..capture.symbolic_sizes import Size, to_expr


@dataclass(frozen=True)
class Batched:
    """The position of the batch in a tensor; see the module's docstring."""

    dim: int
    outer: Size = 1
    inner: Size = 1
    numbered: bool = False

    def at(self, dim: int) -> Batched:
        return Batched(dim, self.outer, self.inner, self.numbered)


# None: shared.
Place: TypeAlias = "Batched | None"


class NotSeparable(Exception):
    """Raised for an operator whose row i of a result needs more than row i; the text says what it does."""


@dataclass(frozen=True)
class RowCall(LeafCall):
    """One call of an operator with at least one batched argument.

    Attributes:
        batch: the symbol of the batch.
        place: returns the position of the batch in a tensor.
    """

    batch: sympy.Symbol
    place: Callable[[torch.Tensor], Place]

    def of(self, name: str) -> Place:
        """Return the position of the batch in the tensor argument ``name``; None if it is shared or left out."""
        value = self[name]
        return self.place(value) if isinstance(value, torch.Tensor) else None

    def batched(self, name: str) -> Batched:
        """Return the position of the batch in an argument that must have it."""
        place = self.of(name)
        if place is None:
            raise NotSeparable(f"uses each row of the batch for all of {name!r}")
        return place

    def only(self, *names: str) -> None:
        """Refuse the batch in any other tensor argument than these."""
        for argument in schema_of(self.func).arguments:
            if argument.name not in names and any(self.place(t) for t in tensors(self[argument.name])):
                raise NotSeparable(f"has the batch in its argument {argument.name!r}, which all rows share")

    def rank(self, name: str) -> int:
        value = self[name]
        assert isinstance(value, torch.Tensor)
        return value.dim()


def lacks(tensor: torch.Tensor, dim: int, rank: int) -> bool:
    """Return whether a shared operand, broadcast to ``rank`` dimensions, has one row for all at dimension ``dim``.

    It could have several rows there, if their number is the symbol of another input and happens to be equal.
    """
    own = dim - (rank - tensor.dim())
    return own < 0 or to_expr(tensor.shape[own]) == 1


def tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors in an argument: itself, or those in a list."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [v for v in value if isinstance(v, torch.Tensor)] if isinstance(value, (list, tuple)) else []


def same(a: Size, b: Size) -> bool:
    """Return whether two sizes are the same polynomial."""
    return bool(sympy.expand(a) == sympy.expand(b))


def product(sizes: Sequence[int | torch.SymInt]) -> Size:
    result: Size = 1
    for size in sizes:
        result = result * to_expr(size)
    return to_expr(sympy.expand(result))


def quotient(a: Size, b: Size) -> Size | None:
    """Return a / b if it is a polynomial, else None."""
    if b == 0:
        return None
    result = sympy.cancel(sympy.expand(a) / sympy.expand(b))
    numerator, denominator = sympy.fraction(result)
    return to_expr(sympy.expand(numerator)) if denominator == 1 else None


def batch_dims(shape: Sequence[int | torch.SymInt], batch: sympy.Symbol) -> list[int]:
    """Return the dimensions whose size contains the batch."""
    return [d for d, size in enumerate(shape) if has(size, batch)]


def has(size: Any, batch: sympy.Symbol) -> bool:
    """Return whether a size, or another number of the graph, depends on the batch."""
    if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return batch in symbols_in(size)
    return False


def fits(shape: Sequence[int | torch.SymInt], place: Place, batch: sympy.Symbol) -> bool:
    """Return whether a shape has the batch at this position, and nowhere else."""
    dims = batch_dims(shape, batch)
    if place is None:
        return not dims
    return dims == [place.dim] and same(to_expr(shape[place.dim]), place.outer * place.inner * batch)


def flattened(shape: Sequence[int | torch.SymInt], dim: int, batch: sympy.Symbol) -> Batched:
    """Return dimension ``dim`` as the position, with the batch outermost in it."""
    inner = quotient(to_expr(shape[dim]), batch)
    if inner is None or batch in sympy.sympify(inner).free_symbols:
        raise NotSeparable(f"makes a dimension of size {to_expr(shape[dim])}, which is not a multiple of the batch")
    return Batched(dim, 1, inner)
