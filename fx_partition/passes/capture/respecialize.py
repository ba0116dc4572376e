"""Make a graph's fake values again, for other sizes than those of the trace.

Each decision by a size becomes an assumption about it: a convolution traced with 32 rows assumes 16 or more. Code for
4 rows must not assume that, so the graph is run again on fake tensors of a new mode with new symbols, whose hint is 4.
Decisions of this run, and later ones of a compiler, are recorded for the new symbols alone.

Before: ``x: [s77, 3, 32, 32]``, traced with 32 rows; ``s77 >= 16`` was assumed
After ``refake(captured, {"s77": 4})``: the same nodes with ``x: [s18, 3, 32, 32]``; ``s18 < 16`` is assumed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.fx

from .captured_graph import CapturedGraph, with_values
from .fake_tensors import (
    ShapeEnv,
    enable_python_dispatcher,
    guards_of,
    hint_of,
    new_fake_mode,
    new_symbol,
    shape_env_of,
    sym_int,
)
from .shape_propagation import ShapeInterpreter
from .symbolic_sizes import evaluate, to_expr


@dataclass(frozen=True)
class Refaked:
    """A graph whose fake values have a new shape environment.

    Attributes:
        captured: a copy of the graph; it shares the original's weights and submodules.
        symbols: for the name of each old symbol, the new one.
        hints: the number with which each new symbol was traced.
    """

    captured: CapturedGraph
    symbols: Mapping[str, sympy.Symbol]
    hints: Mapping[sympy.Symbol, int]

    @property
    def guards(self) -> list[sympy.Basic]:
        """Return what has been assumed of the new symbols so far."""
        env = shape_env_of(self.captured.values.values())
        assert env is not None
        return guards_of(env)


def refake(captured: CapturedGraph, sizes: Mapping[str, int]) -> Refaked:
    """Run a graph again on new symbols; the original is not changed.

    Args:
        captured: a graph with at least one symbol.
        sizes: the new number of each symbol, by name; other symbols keep the number of the trace.

    Example: see the module's docstring.
    """
    return _Refake(captured, sizes).result()


class _Refake:
    def __init__(self, captured: CapturedGraph, sizes: Mapping[str, int]) -> None:
        old = shape_env_of(captured.values.values())
        assert old is not None, "a graph without symbols has the sizes of its trace"
        self._captured, self._old, self._sizes = captured, old, sizes
        self._env = ShapeEnv()
        self._mode = new_fake_mode(self._env)
        self._numbers: dict[sympy.Symbol, int] = {}
        self._symbols: dict[sympy.Symbol, sympy.Symbol] = {}

    def result(self) -> Refaked:
        arguments = [self._argument(node) for node in self._captured.gm.graph.find_nodes(op="placeholder")]
        interpreter = ShapeInterpreter(self._captured.gm, self._mode)
        # Restores the grad mode, which the graph may change; guards are not suppressed, as they are to be recorded.
        grad_mode = torch.set_grad_enabled(torch.is_grad_enabled())
        with grad_mode, self._env.ignore_fresh_unbacked_symbols(), enable_python_dispatcher(), self._mode:
            interpreter.run(*arguments, enable_io_processing=False)
        symbols = {old.name: new for old, new in self._symbols.items()}
        hints = {self._symbols[old]: number for old, number in self._numbers.items()}
        return Refaked(with_values(self._captured, interpreter.values), symbols, hints)

    def _argument(self, node: torch.fx.Node) -> Any:
        value = self._captured.values.get(node)
        if node in self._captured.weights:
            return self._mode.from_tensor(self._captured.weights[node], static_shapes=True)
        if isinstance(value, torch.Tensor):
            shape, strides = ([self._size(size) for size in sizes] for sizes in (value.shape, value.stride()))
            with self._mode:
                return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)
        return self._size(value) if isinstance(value, torch.SymInt) else value

    def _size(self, size: int | torch.SymInt) -> int | torch.SymInt:
        """Return a size of the trace over the new symbols."""
        expression = to_expr(size)
        if isinstance(expression, int):
            return expression
        for symbol in sorted(expression.free_symbols - self._symbols.keys(), key=str):
            self._numbers[symbol] = self._sizes.get(symbol.name, hint_of(self._old, symbol))
            self._symbols[symbol] = new_symbol(self._env, symbol.name, self._numbers[symbol])
        return sym_int(self._env, expression.xreplace(self._symbols), evaluate(expression, self._numbers))
