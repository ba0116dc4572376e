"""Write symbolic sizes as text and read them back: sums and products of whole numbers, symbols and a few functions.

A text may come from an untrusted file, so it is read by a grammar and never evaluated::

    sum     = ["-"] term {("+" | "-") term}
    term    = factor {("*" | "/") factor}
    factor  = "-" factor | atom ["**" natural number]
    atom    = number | symbol | function "(" sum {"," sum} ")" | "(" sum ")"

Every text is bounded: its length, its depth, its numbers, and the bits of its value where every symbol is as large as
a size can be. Functions are not evaluated either: sympy has simplified them before `to_text` wrote them, and its rules
for some (greatest common divisors, comparisons) can take very long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, cast

import sympy
from sympy.printing.str import StrPrinter

from fx_partition.common.errors import PartitionError

from .fake_tensors import torch_functions
from .symbolic_sizes import MOST_BITS, NUMERIC, Size, to_expr

# The longest size of the models tried has some 700 characters, is 5 levels deep and has 4 arguments to a Max.
MOST_CHARACTERS = 20_000
MOST_LEVELS = 40
MOST_ARGUMENTS = 100
LARGEST = 2**63 - 1
MOST_SYMBOL_BITS = LARGEST.bit_length()

# The number of arguments of each function that does not take one; 0 for any number.
_ARGUMENTS = {
    **dict.fromkeys(("FloorDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "Mod", "PythonMod"), 2),
    **dict.fromkeys(("PowByNatural", "FloatPow", "RoundDecimal"), 2),
    **dict.fromkeys(("BitwiseFn_bitwise_and", "BitwiseFn_bitwise_or", "BitwiseFn_bitwise_xor"), 2),
    "ModularIndexing": 3,
    "Max": 0,
    "Min": 0,
}
_DIVISIONS = {"FloorDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "Mod", "PythonMod", "ModularIndexing"}
# No written size has the three that are left out: torch replaces CeilDiv by others, Where takes a comparison, and only
# inductor makes an Identity.
_FUNCTIONS: dict[str, Any] = {
    name: getattr(torch_functions, name)
    for name in NUMERIC.keys() - {"CeilDiv", "Where", "Identity"}
    if hasattr(torch_functions, name)
} | {"floor": sympy.floor}

_VALUES: dict[str, Callable[..., Any]] = NUMERIC | {"floor": math.floor}

_TOKEN = re.compile(r"\s*(?:(\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+)|([A-Za-z_]\w*)|(\*\*|[-+*/(),]))", re.ASCII)


class _Printer(StrPrinter):  # type: ignore[misc]  # sympy is untyped
    printmethod = "_no_print_method_of_its_own"  # torch's FloorDiv would print as a//b, which reads back as floor(a/b)

    def _print_Float(self, expr: sympy.Float) -> str:
        return repr(float(expr))  # sympy prints 15 digits, which is one or two too few


def to_text(size: Size) -> str:
    """Return a size as text that `from_text` reads back."""
    return str(size) if isinstance(size, int) else _printed(size)


@lru_cache(maxsize=4096)
def _printed(size: sympy.Expr) -> str:
    """Print a size; cached, as like partitions have the same sizes, and a report prints them as the plan's JSON does.
    """
    return cast(str, _Printer().doprint(size))


def from_text(text: str, symbols: Iterable[sympy.Symbol]) -> Size:
    """Read a text of `to_text`; ``symbols`` carry the assumptions (positive, integer) that text loses.

    Raises:
        PartitionError: the text is not a size over these symbols, or is larger than any size of a graph.

    Example::

        >>> s = sympy.Symbol("s0", positive=True, integer=True)
        >>> from_text("4*s0**2 + 12", [s])
        4*s0**2 + 12
    """
    return SizeReader(dict.fromkeys(symbols, 1)).read(text).expr


class ReadSize(NamedTuple):
    """A size, and its value for the reader's numbers; None if it has no value, as it divides by zero."""

    expr: Size
    value: int | None


class SizeReader:
    """A reader of texts over the same symbols.

    Args:
        numbers: the number of each symbol, for the values of the sizes.
    """

    def __init__(self, numbers: Mapping[sympy.Symbol, int]) -> None:
        self._symbols = {symbol.name: _Part(symbol, number, MOST_SYMBOL_BITS) for symbol, number in numbers.items()}

    def read(self, text: str) -> ReadSize:
        """Return the size of a text, and its value; errors as for `from_text`."""
        if text.isascii() and text.isdecimal() and len(text) < 19:  # fast, as all sizes of a static graph are numbers
            return ReadSize(int(text), int(text))
        return _Reader(text, self._symbols).read()


@dataclass(frozen=True)
class _Part:
    """A part of a size, its value or None, and a bound on the value's bits for any numbers of the symbols."""

    expr: Any
    value: Any
    bits: int


class _Reader:
    """A recursive descent over one text."""

    def __init__(self, text: str, symbols: Mapping[str, _Part]) -> None:
        self._text, self._symbols = text, symbols
        self._tokens: list[re.Match[str]] = []
        self._place = self._level = 0

    def read(self) -> ReadSize:
        if len(self._text) > MOST_CHARACTERS:
            self._refuse(f"it has {len(self._text)} characters")
        end = 0
        while end < len(self._text.rstrip()):
            token = _TOKEN.match(self._text, end)
            if token is None:
                self._refuse(f"{_shown(self._text[end:].strip())} is not expected")
            self._tokens.append(token)
            end = token.end()
        result = self._sum()
        if self._next:
            self._unexpected()
        if result.expr.is_Number and not result.expr.is_Integer:
            self._refuse("it is not a whole number")
        return ReadSize(to_expr(result.expr), _value(int, result))

    @property
    def _next(self) -> str:
        """Return the next token, "" at the end."""
        return self._tokens[self._place][0].strip() if self._place < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        """Go past the next token and return it, if it is one of these; else return ""."""
        token = self._next
        if token not in wanted:
            return ""
        self._place += 1
        return token

    def _refuse(self, why: str) -> NoReturn:
        symbols = ", ".join([*self._symbols][:5]) or "none, as the graph is static"
        raise PartitionError(
            f"{_shown(self._text)} is not a size: {why}. A size is a sum of products of whole numbers, the symbols "
            f"({symbols}) and functions such as FloorDiv and Max"
        )

    def _unexpected(self) -> NoReturn:
        self._refuse(f"{_shown(self._next)} is not expected" if self._next else "it ends too early")

    def _sum(self) -> _Part:
        self._level += 1
        if self._level > MOST_LEVELS:
            self._refuse(f"it is more than {MOST_LEVELS} levels deep")
        parts = [self._term()]
        while sign := self._take("+", "-"):
            part = self._term()
            parts.append(_negated(part) if sign == "-" else part)
        self._level -= 1
        if len(parts) == 1:
            return parts[0]
        bits = max(p.bits for p in parts) + len(parts).bit_length()
        return self._bounded(bits, sympy.Add, lambda *values: sum(values), *parts)

    def _term(self) -> _Part:
        parts = [self._factor()]
        while sign := self._take("*", "/"):
            part = self._factor()
            if sign == "/":
                if part.expr == 0:
                    self._refuse("it divides by zero")
                part = _Part(sympy.Pow(part.expr, -1), _value(_inverse, part), part.bits)
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return self._bounded(sum(p.bits for p in parts), sympy.Mul, lambda *values: math.prod(values), *parts)

    def _factor(self) -> _Part:
        signs = 0
        while self._take("-"):
            signs += 1
        part = self._atom()
        if self._take("**"):
            exponent = self._next
            if not exponent.isdecimal() or len(exponent) > 4:
                self._refuse(f"its exponent {_shown(exponent)} is not a natural number below 10000")
            self._place += 1
            power = int(exponent)
            part = self._bounded(part.bits * power, lambda e: sympy.Pow(e, power), lambda value: value**power, part)
        return _negated(part) if signs % 2 else part

    def _bounded(self, bits: int, make: Callable[..., Any], compute: Callable[..., Any], *parts: _Part) -> _Part:
        if bits > MOST_BITS:
            self._refuse(f"its value can have more than {MOST_BITS} bits")
        return _Part(make(*(p.expr for p in parts)), _value(compute, *parts), bits)

    def _atom(self) -> _Part:
        if not self._next:
            self._unexpected()
        number, name, _ = self._tokens[self._place].groups()
        if not number and not name:
            return self._in_parentheses() if self._next == "(" else self._unexpected()
        self._place += 1
        if number:
            return self._number(number)
        if name in self._symbols:
            return self._symbols[name]
        if name not in _FUNCTIONS:
            self._refuse(f"{_shown(name)} is neither a symbol of the graph nor a function that sizes have")
        return self._call(name)

    def _call(self, name: str) -> _Part:
        if not self._take("("):
            self._refuse(f"{name} is a function, so a parenthesis must follow")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._close()
        wanted = _ARGUMENTS.get(name, 1)
        if wanted not in (0, len(arguments)):
            self._refuse(f"{name} takes {wanted} arguments, not {len(arguments)}")
        if len(arguments) > MOST_ARGUMENTS:
            self._refuse(f"{name} has {len(arguments)} arguments")
        if all(a.expr.is_number for a in arguments):
            self._refuse(f"{name} of numbers alone is a number, and must be written as one")
        if name in _DIVISIONS and any(a.expr == 0 for a in arguments[1:]):
            self._refuse("it divides by zero")
        made = _FUNCTIONS[name](*(a.expr for a in arguments), evaluate=False)
        return _Part(made, _value(_VALUES[name], *arguments), max(a.bits for a in arguments))

    def _in_parentheses(self) -> _Part:
        self._take("(")
        part = self._sum()
        self._close()
        return part

    def _close(self) -> None:
        if not self._take(")"):
            self._unexpected()

    def _number(self, text: str) -> _Part:
        if not text.isdecimal():
            value = float(text)
            if value > LARGEST:
                self._refuse(f"the number {_shown(text)} is larger than any size")
            return _Part(sympy.Float(value), value, MOST_SYMBOL_BITS)
        if len(text) > 19 or int(text) > LARGEST:
            self._refuse(f"the number {_shown(text)} is larger than any size")
        return _Part(sympy.Integer(int(text)), int(text), max(1, int(text).bit_length()))


def _negated(part: _Part) -> _Part:
    return _Part(sympy.Mul(-1, part.expr), _value(lambda value: -value, part), part.bits)


def _inverse(value: Any) -> Any:
    return 1 / value if isinstance(value, float) else Fraction(1, value)


def _value(compute: Callable[..., Any], *parts: _Part) -> Any:
    """Compute a value from the values of parts; None if one of them has none, or if the result is undefined."""
    values = [part.value for part in parts]
    if None in values:
        return None
    try:
        return compute(*values)
    except (ArithmeticError, ValueError):  # ValueError: the root or the logarithm of a negative number
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-10:]}")
