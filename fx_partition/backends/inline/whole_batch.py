"""A whole graph that is compiled when it is first called, once for all sizes that the code allows.

It runs batches that cannot run in microbatches (see `batching.microbatch_size.BatchSplitter`). Most models never get
one, and compiling their graph in addition to its stages would take twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy

from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.respecialize import refake

from ..lowering.torch_internals import compile_part


class WholeBatch:
    """A function of the graph's inputs; compiles the graph when a call needs it.

    Args:
        captured: a graph with symbols; it is not changed.
        patches: the options of inductor.
    """

    def __init__(self, captured: CapturedGraph, patches: Mapping[str, Any]) -> None:
        self._captured, self._patches = captured, patches
        order = captured.gm.graph.find_nodes(op="placeholder")
        self._places = {name: order.index(node) for name, node in captured.symbol_inputs.items()}
        self._compiled: list[tuple[Callable[[Mapping[str, int]], bool], Callable[..., Any]]] = []

    def __call__(self, *arguments: Any) -> Any:
        sizes = {name: arguments[place] for name, place in self._places.items()}
        for admits, function in self._compiled:
            if admits(sizes):
                return function(*arguments)
        self._compiled.append(self._compile(sizes, arguments))
        return self._compiled[-1][1](*arguments)

    def _compile(
        self, sizes: Mapping[str, int], arguments: tuple[Any, ...]
    ) -> tuple[Callable[[Mapping[str, int]], bool], Callable[..., Any]]:
        made = refake(self._captured, sizes)
        nodes = made.captured.gm.graph.find_nodes(op="placeholder")
        inputs = [made.captured.values.get(node, real) for node, real in zip(nodes, arguments, strict=True)]
        function = compile_part(made.captured.gm, inputs, self._patches)
        guards = made.guards

        def admits(sizes: Mapping[str, int]) -> bool:
            numbers = {symbol: sizes[name] for name, symbol in made.symbols.items()}
            return all(guard.subs(numbers) == sympy.true for guard in guards)

        return admits, function
