"""Find the shape symbols of a graph, and numbers or bounds for those to which the tracer gave no number.

Two kinds of symbols have no number. Sizes of inputs that a user marked (``torch._dynamo.decorators.mark_unbacked``)
are known before the first step runs, so the example inputs give their numbers. Sizes that only a run can tell
(``nonzero``, ``item``) are results of a step in the middle; the graph may bound them, by ``torch._check(n <= 64)`` or
by the largest size of a dynamic dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, is_symbolic
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .captured_graph import CapturedGraph
from .fake_tensors import (
    ShapeEnv,
    bounds_of,
    hint_of,
    leaves_of,
    run_time_checks,
    shape_env_of,
    symbols_in,
    torch_functions,
)
from .symbolic_sizes import Size, Symbols, numbers_of, smallest, to_expr

# Bounds from the largest index of 32 bits on count as none.
NO_BOUND = 2**31 - 1


def symbols_of(captured: CapturedGraph) -> Symbols:
    """Return the symbols in the sizes of a graph's tensors and numbers, with their numbers or bounds."""
    shape_env = shape_env_of(leaf for value in captured.values.values() for leaf in leaves_of(value))
    if shape_env is None:
        return Symbols()
    found: set[sympy.Symbol] = set()
    without: set[sympy.Symbol] = set()
    for value in captured.values.values():
        for size in sizes_in(value):
            found |= symbols_in(size)
            without |= unbacked_in(size)
    ordered = sorted(found, key=lambda s: cast(str, s.name))
    numbers = {s: captured.example_numbers.get(s) if s in without else hint_of(shape_env, s) for s in ordered}
    hints = {symbol: number for symbol, number in numbers.items() if number is not None}
    named = {name: to_expr(size) for name, size in captured.dims.items()}
    return Symbols(
        hints=hints,
        dims={name: expr for name, expr in named.items() if isinstance(expr, sympy.Symbol)},
        unbacked={s: bound_of(shape_env, s, hints) for s in ordered if s not in hints},
    )


def sizes_in(value: Any) -> Iterable[torch.SymInt]:
    """Yield the symbolic sizes of the tensors and numbers in a value."""
    for leaf in leaves_of(value):
        for size in leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,):
            if isinstance(size, torch.SymInt):
                yield size


def unbacked_in(value: Any) -> set[sympy.Symbol]:
    """Return the symbols without a number in the sizes and numbers of a value; it may be an input's."""
    found: set[sympy.Symbol] = set()
    for leaf in leaves_of(value):
        if isinstance(leaf, torch.Tensor):
            if torch.SymInt not in map(type, leaf.shape):
                continue
            if is_traceable_wrapper_subclass(leaf) or leaf.layout is not torch.strided:
                found |= free_unbacked_symbols(leaf)
                continue
            numbers: tuple[Any, ...] = (*leaf.shape, *leaf.stride(), leaf.storage_offset())
        else:
            numbers = (leaf,)
        for number in numbers:
            if isinstance(number, (torch.SymInt, torch.SymBool, torch.SymFloat)) and is_symbolic(number):
                found |= _unbacked_in_expr(number.node.expr)
    return found


@lru_cache(maxsize=4096)
def _unbacked_in_expr(expr: sympy.Basic) -> frozenset[sympy.Symbol]:
    """Return the unbacked symbols of an expression; cached, as the tensors of a graph share a few sizes."""
    return frozenset(free_unbacked_symbols(expr))


def known_at_start(captured: CapturedGraph) -> set[sympy.Symbol]:
    """Return the symbols in the sizes of a graph's inputs, with or without a number from the tracer."""
    inputs = (value for node, value in captured.values.items() if node.op == "placeholder")
    return {symbol for value in inputs for size in sizes_in(value) for symbol in symbols_in(size)}


def numbers_from_inputs(fakes: Iterable[Any], inputs: Iterable[Any]) -> dict[sympy.Symbol, int]:
    """Return numbers, from the example inputs, for the symbols to which the tracer gave none.

    Args:
        fakes: the tracer's fake of each input.
        inputs: the inputs themselves.
    """
    pairs = [(fake, real) for fake, real in zip(fakes, inputs, strict=True) if isinstance(real, torch.Tensor)]
    shapes = [(fake.shape, real.shape) for fake, real in pairs if isinstance(fake, torch.Tensor) and unbacked_in(fake)]
    return numbers_of(
        (to_expr(size), number)
        for fake, real in shapes
        if len(fake) == len(real)
        for size, number in zip(fake, real, strict=True)
        if isinstance(number, int) and isinstance(size, torch.SymInt)
    )


def bound_of(shape_env: ShapeEnv, symbol: sympy.Symbol, known: Iterable[sympy.Symbol]) -> Size | None:
    """Return the largest number that a graph allows for a symbol; None if the graph does not bound it.

    Args:
        known: the symbols over which the bound may be an expression.
    """
    known = set(known)
    found: Size | None = None
    _, upper = bounds_of(shape_env, symbol)
    bounds: list[Size] = [] if upper is None or upper >= NO_BOUND else [upper]
    bounds += filter(None, (_bound_by(check, symbol, known) for check in run_time_checks(shape_env, symbol)))
    for bound in bounds:
        found = bound if found is None else smallest(found, bound)
    return found


def _bound_by(check: sympy.Basic, symbol: sympy.Symbol, known: set[sympy.Symbol]) -> Size | None:
    """Return the bound that a comparison gives, if it is linear in the symbol with a whole factor; else None.

    Example: ``2*u0 <= s0 + 5`` bounds u0 by the whole part of ``(s0 + 5)/2``.
    """
    if not isinstance(check, (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt)):
        return None
    rest = sympy.expand(check.gts - check.lts)  # at least 0, or more
    factor = -rest.coeff(symbol)
    rest = sympy.expand(rest + factor * symbol) - int(isinstance(check, (sympy.Lt, sympy.Gt)))
    if not factor.is_Integer or factor <= 0 or not rest.free_symbols <= known:
        return None
    return to_expr(rest if factor == 1 else torch_functions.FloorDiv(rest, factor))
