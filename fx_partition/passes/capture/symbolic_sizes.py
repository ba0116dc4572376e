"""Convert symbolic sizes from SymInts to sympy, and from sympy to numbers (`size_text`: to text and back).

A size is a Python ``int`` where a graph is static, and else a sympy expression over the graph's shape symbols. Nothing
here compares a SymInt: a comparison adds a guard, and a guard may recompile the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias, cast

import sympy
import torch
from sympy.printing.pycode import PythonCodePrinter

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import LARGEST, shown

from .fake_tensors import torch_functions

Size: TypeAlias = "int | sympy.Expr"

# The most bits of a size's value: 2**63 to the power of 64. Without a bound, a power of powers would take for ever.
MOST_BITS = 64 * 64


def _power(base: Any, exponent: Any) -> Any:
    if int(base).bit_length() * exponent > MOST_BITS:
        raise OverflowError(f"a power of more than {MOST_BITS} bits")
    return base**exponent


# torch's sympy functions as Python on ints, so that a lambdified size agrees with the graph's own arithmetic.
NUMERIC: dict[str, Any] = {
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "CeilDiv": lambda a, b: -(-a // b),
    "CeilToInt": lambda a: -int(-a // 1),
    "FloorToInt": lambda a: int(a // 1),
    "TruncToInt": int,
    "IntTrueDiv": lambda a, b: a / b,
    "FloatTrueDiv": lambda a, b: a / b,
    "FloatPow": math.pow,
    "ToFloat": float,
    "TruncToFloat": lambda a: float(int(a)),
    "RoundDecimal": lambda a, b: round(float(a), int(b)),
    "PythonMod": lambda a, b: a % b,
    "Mod": lambda a, b: a % b,
    "ModularIndexing": lambda a, b, c: (a // b) % c,
    "PowByNatural": _power,
    "BitwiseFn_bitwise_and": lambda a, b: int(a) & int(b),
    "BitwiseFn_bitwise_or": lambda a, b: int(a) | int(b),
    "BitwiseFn_bitwise_xor": lambda a, b: int(a) ^ int(b),
    "Where": lambda c, a, b: a if c else b,
    "Max": lambda *a: max(a),
    "Min": lambda *a: min(a),
    "RoundToInt": round,
    "Identity": lambda a: a,
    **{f"OpaqueUnaryFn_{name}": getattr(math, name) for name in ("sqrt", "exp", "log", "log2")},
}


def to_expr(size: int | torch.SymInt | sympy.Expr) -> Size:
    """Return a size as an ``int`` if it is a number, else as a sympy expression; add no guard."""
    if isinstance(size, torch.SymInt):
        size = size.node.expr
    if isinstance(size, sympy.Expr):
        return int(size) if size.is_Integer else size
    return int(size)


@dataclass(frozen=True)
class Symbols:
    """The shape symbols of a graph.

    Attributes:
        hints: the value of each symbol in the trace; a symbol without one is absent.
        dims: for each dimension by the name that a user knows (``"input_ids.1"``), its symbol.
        unbacked: for each symbol whose value is known only when the graph runs, the largest value that the graph
            allows, an expression over the others; None where the graph does not bound it.
    """

    hints: Mapping[sympy.Symbol, int] = field(default_factory=dict)
    dims: Mapping[str, sympy.Symbol] = field(default_factory=dict)
    unbacked: Mapping[sympy.Symbol, Size | None] = field(default_factory=dict)

    def bind(self, bind: Mapping[str, int] | None = None) -> dict[sympy.Symbol, int]:
        """Return a number for every symbol: that of `known_numbers`, else the largest that the graph allows, else
        `UNBACKED_FALLBACK`.

        Raises:
            ValueError: as for `known_numbers`.
        """
        numbers = self.known_numbers(bind)
        for symbol, bound in self.unbacked.items():
            if symbol not in numbers:
                numbers[symbol] = UNBACKED_FALLBACK if bound is None else max(evaluate(bound, numbers), 0)
        return numbers

    def assumed(self, bind: Mapping[str, int] | None = None) -> list[sympy.Symbol]:
        """Return the symbols for which `bind` returns a guess, as they have neither a number nor a bound."""
        known = self.known_numbers(bind)
        return [symbol for symbol, bound in self.unbacked.items() if bound is None and symbol not in known]

    def known_numbers(self, bind: Mapping[str, int] | None = None) -> dict[sympy.Symbol, int]:
        """Return the numbers that ``bind``, or else the trace, gives to symbols.

        Args:
            bind: numbers by symbol ("s33") or by dimension of an input ("input_ids.1").

        Raises:
            ValueError: a name in ``bind`` is neither a symbol nor a dimension of this graph, or its value is not
                positive.
        """
        by_name = {symbol.name: symbol for symbol in [*self.hints, *self.unbacked]}
        by_name.update(self.dims)
        numbers = dict(self.hints)
        for name, value in (bind or {}).items():
            if name not in by_name:
                known = ", ".join(sorted(by_name)) or "none, as the graph is static"
                raise ValueError(f"bind: {name!r} is not a symbol of this graph; its symbols are: {known}")
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
                raise ValueError(
                    f"bind: {name!r} must be a positive whole number, not {shown(value)}; at most {LARGEST}"
                )
            numbers[by_name[name]] = value
        return numbers


# What inductor assumes for a size that is known only at run time (torch._inductor.config.unbacked_symint_fallback).
UNBACKED_FALLBACK = 8192


def explain_guess(names: Iterable[str]) -> str:
    """Return a message on sizes that are guessed: which ones, and the way out."""
    names = " and ".join(names)
    return (
        f"{names}, known only when the graph runs, is taken to be {UNBACKED_FALLBACK}, as nothing bounds it: let the "
        f"model torch._check an upper bound, or give bind= a number"
    )


class _CodePrinter(PythonCodePrinter):  # type: ignore[misc]  # sympy is untyped
    """A printer that writes torch's Mod as a call: sympy writes ``Mod(s0 + 3, 8)`` as ``s0 + 3 % 8``, another number.
    """

    def __init__(self) -> None:
        names = {name: name for name in NUMERIC}
        super().__init__({
            "fully_qualified_modules": False, "inline": True, "allow_unknown_functions": True, "user_functions": names
        })  # fmt: skip

    def _print_Mod(self, expr: sympy.Expr) -> str:
        return f"Mod({', '.join(map(self._print, expr.args))})"


class Evaluator:
    """A function from the numbers of symbols to the numbers of many sizes; each distinct expression is compiled once.

    Example::

        >>> s = sympy.Symbol("s0", positive=True, integer=True)
        >>> Evaluator([4, 8 * s])({s: 3})
        [4, 24]
    """

    def __init__(self, sizes: Sequence[Size]) -> None:
        self._sizes = list(sizes)
        distinct = dict.fromkeys(size for size in sizes if not isinstance(size, int))
        self._expressions = list(distinct)
        self._symbols = sorted({s for e in self._expressions for s in e.free_symbols}, key=lambda s: cast(str, s.name))
        self._function = (
            sympy.lambdify(self._symbols, self._expressions, modules=[NUMERIC, "math"], printer=_CodePrinter, cse=True)
            if self._expressions
            else None
        )

    def __call__(self, numbers: Mapping[sympy.Symbol, int]) -> list[int]:
        """Return the numbers, in the order of the sizes.

        Raises:
            PartitionError: a size has no value for these numbers: it divides by zero, or is out of bounds.
        """
        if self._function is None:
            return cast("list[int]", list(self._sizes))
        given = [numbers.get(s, UNBACKED_FALLBACK) for s in self._symbols]
        try:
            values = self._function(*given)
            value_of = {size: int(value) for size, value in zip(self._expressions, values, strict=True)}
        except (ArithmeticError, ValueError) as error:  # ValueError: the root or the logarithm of a negative number
            where = ", ".join(f"{symbol}={number}" for symbol, number in zip(self._symbols, given, strict=True))
            raise PartitionError(f"a size has no value for {where}: {error}") from error
        return [size if isinstance(size, int) else value_of[size] for size in self._sizes]


def evaluate(size: Size, numbers: Mapping[sympy.Symbol, int]) -> int:
    """Return one size as a number; for many sizes, build one `Evaluator`."""
    return size if isinstance(size, int) else _evaluator(size)(numbers)[0]


@lru_cache(maxsize=4096)
def _evaluator(size: sympy.Expr) -> Evaluator:
    """Return the evaluator of a size; cached, as a plan evaluates its partitions under one binding after another."""
    return Evaluator([size])


def numbers_of(sizes: Iterable[tuple[Size, int]]) -> dict[sympy.Symbol, int]:
    """Solve for symbols from (size expression, number) pairs that are linear in one symbol; ignore other pairs.

    Example: a derived dimension of torch.export, ``2*Dim("rows")``, gives the number of rows.

        >>> s = sympy.Symbol("s0", positive=True, integer=True)
        >>> numbers_of([(4, 4), (2 * s + 1, 7)]), numbers_of([(2 * s, 7)])
        ({s0: 3}, {})
    """
    found: dict[sympy.Symbol, int] = {}
    for size, number in sizes:
        parts = terms(size)
        rest = number - parts.pop(sympy.S.One, 0)
        for symbol, factor in parts.items():
            if isinstance(symbol, sympy.Symbol) and len(parts) == 1 and rest % factor == 0:
                found.setdefault(symbol, rest // factor)
    return found


def smallest(a: Size, b: Size) -> Size:
    """Return the smaller of two sizes as torch's own ``Min``; `size_text` does not read sympy's."""
    return to_expr(torch_functions.Min(a, b))  # type: ignore[no-untyped-call]


def add_up(sizes: Iterable[Size]) -> Size:
    """Return the sum of sizes."""
    total: Size = 0
    for size in sizes:
        total = total + size
    return to_expr(total)


def largest(sizes: Iterable[Size]) -> Size:
    """Return the largest of a few sizes and 0 as torch's own ``Max``; for a graph's steps keep the list instead.

    A ``Max`` of 80 terms took sympy 9.9 s.
    """
    return to_expr(torch_functions.Max(0, *sizes))  # type: ignore[no-untyped-call]


Terms: TypeAlias = "dict[sympy.Expr, int]"


def terms(size: Size) -> Terms:
    """Return a size as a polynomial: {monomial: integer coefficient}; any other term counts as a monomial."""
    if isinstance(size, int):
        return {sympy.S.One: size} if size else {}
    result: Terms = {}
    for term in sympy.Add.make_args(sympy.expand(size)):
        coefficient, monomial = term.as_coeff_Mul()
        if not coefficient.is_Integer:  # byte counts have fractions only inside FloorDiv; keep the term whole
            coefficient, monomial = sympy.S.One, term
        result[monomial] = result.get(monomial, 0) + int(coefficient)
    return result


def from_terms(parts: Terms) -> Size:
    """Return the size of a polynomial, the inverse of `terms`."""
    return to_expr(sympy.Add(*(coefficient * monomial for monomial, coefficient in parts.items())))


def dominates(a: Terms, b: Terms) -> bool:
    """Whether a >= b for all positive values of the symbols, shown coefficient by coefficient."""
    return all(a.get(m, 0) >= c for m, c in b.items()) and all(c >= 0 or b.get(m, 0) <= c for m, c in a.items())


def undominated(sizes: Iterable[Size]) -> tuple[Size, ...]:
    """Return the sizes that can be the largest for some values of the symbols, without building a `sympy.Max`."""
    kept: list[tuple[Size, Terms]] = []
    largest_int = 0
    for size in dict.fromkeys(sizes):
        if isinstance(size, int):
            largest_int = max(largest_int, size)
            continue
        parts = terms(size)
        if any(dominates(other, parts) for _, other in kept):
            continue
        kept = [(s, p) for s, p in kept if not dominates(parts, p)]
        kept.append((size, parts))
    constant = terms(largest_int)
    if not any(dominates(parts, constant) for _, parts in kept):
        kept.append((largest_int, constant))
    return tuple(size for size, _ in kept)
