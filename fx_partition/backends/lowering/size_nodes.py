"""Write symbolic sizes as nodes: ``4*s0 + 1`` becomes calls on the placeholder of ``s0``."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import sympy
import torch.fx

Argument: TypeAlias = "torch.fx.Node | int"

_CALLS: dict[str, Callable[..., Any]] = {
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "Max": torch.sym_max,
    "Min": torch.sym_min,
}


def write_size(graph: torch.fx.Graph, size: sympy.Expr | int, symbols: Mapping[str, torch.fx.Node]) -> Argument:
    """Write nodes that compute a size, at the graph's insertion point.

    Args:
        symbols: the node of each symbol, by name.

    Raises:
        ValueError: the size has a symbol without a node, or a function that cannot be written as a node.
    """
    if isinstance(size, int) or size.is_Integer:
        return int(size)
    if isinstance(size, sympy.Symbol):
        if size.name not in symbols:
            raise ValueError(f"no input has the size {size.name}")
        return symbols[size.name]
    arguments = [write_size(graph, argument, symbols) for argument in size.args]
    if all(isinstance(argument, int) for argument in arguments):
        return int(size)
    if isinstance(size, sympy.Add):
        return _fold(graph, operator.add, arguments)
    if isinstance(size, sympy.Mul):
        return _fold(graph, operator.mul, arguments)
    if isinstance(size, sympy.Pow):
        return graph.call_function(operator.pow, tuple(arguments))
    name = type(size).__name__
    if name not in _CALLS:
        raise ValueError(f"the size {size} has the function {name}, which cannot be written as a node")
    return _fold(graph, _CALLS[name], arguments)


def _fold(graph: torch.fx.Graph, function: Callable[..., Any], arguments: list[Argument]) -> Argument:
    numbers = [argument for argument in arguments if isinstance(argument, int)]
    nodes: list[Argument] = [argument for argument in arguments if not isinstance(argument, int)]
    if function is operator.add and numbers:
        nodes.append(sum(numbers))
    elif function is operator.mul and numbers:
        nodes.append(math.prod(numbers))
    else:
        nodes = arguments
    return functools.reduce(lambda a, b: graph.call_function(function, (a, b)), nodes)
