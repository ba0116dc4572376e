"""Check the inputs of a call against the sizes that its graph was traced for.

A tracer writes the sizes of its example into a graph as numbers, unless a dimension was declared dynamic. Called with
other sizes, such a graph would compute with the old numbers, so a split graph begins with a check::

    refuse_other_sizes([x, mask], '[["x", ["s0", 64]], ["mask", ["s0"]]]', '{"s0": [2, 512]}')

Sizes are text, so that the graph module prints and copies like any other.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch
import torch.fx
from torch.fx.node import has_side_effect

from fx_partition.common.errors import PartitionError

from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import bounds_of, shape_env_of
from ..capture.size_text import from_text, to_text
from ..capture.symbolic_sizes import Size, evaluate, numbers_of, to_expr

Numbers: TypeAlias = "dict[sympy.Symbol, int]"


@dataclass(frozen=True)
class InputSizes:
    """The inputs that a graph accepts.

    Attributes:
        expected: (name, sizes) for each input; a list of sizes for a tensor, the number or text for a constant, None
            for an input that may be anything.
        bounds: the smallest and the largest number of each symbol, None where there is no bound.
    """

    expected: Sequence[tuple[str, Any]]
    bounds: Mapping[sympy.Symbol, Sequence[int | None]]

    @classmethod
    def of(cls, captured: CapturedGraph) -> InputSizes:
        """Return the inputs that a captured graph accepts."""
        expected: list[tuple[str, Any]] = []
        symbols: set[sympy.Symbol] = set()
        for node in captured.gm.graph.find_nodes(op="placeholder"):
            value = captured.values.get(node)
            name = captured.names.get(node, node.name)
            if isinstance(value, torch.Tensor):
                sizes = [to_expr(size) for size in value.shape]
                expected.append((name, sizes))
                symbols |= {s for size in sizes if not isinstance(size, int) for s in size.free_symbols}
            else:
                expected.append((name, value if isinstance(value, (bool, int, float, str)) else None))
        env = shape_env_of(captured.values.values())
        return cls(expected, {s: bounds_of(env, s) for s in sorted(symbols, key=str)} if env else {})

    def check(self, inputs: Sequence[Any]) -> Numbers:
        """Check the inputs of a call, and return the number of each symbol.

        Raises:
            TypeError: an input must be a tensor and is not.
            PartitionError: an input has sizes that the graph was not traced for; it names the input.
        """
        numbers: Numbers = numbers_of(
            (size, number)
            for x, (_, sizes) in zip(inputs, self.expected, strict=True)
            if isinstance(sizes, list) and isinstance(x, torch.Tensor) and x.dim() == len(sizes)
            for size, number in zip(sizes, x.shape, strict=True)
        )
        for x, (name, sizes) in zip(inputs, self.expected, strict=True):
            if isinstance(sizes, list):
                self._check_tensor(name, x, sizes, numbers)
            elif sizes is not None and x != sizes:
                raise PartitionError(
                    f"input {name!r} is {x!r}, and the graph was traced for {sizes!r} only; pass {sizes!r}, or split "
                    "the model again with the new value"
                )
        return numbers

    def _check_tensor(self, name: str, x: Any, sizes: Sequence[Size], numbers: Numbers) -> None:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"input {name!r} is {type(x).__name__}, and must be a tensor")
        if x.dim() != len(sizes) or any(evaluate(w, numbers) != s for w, s in zip(sizes, x.shape, strict=True)):
            raise PartitionError(
                f"input {name!r} has shape {list(x.shape)}, and the graph takes [{', '.join(map(str, sizes))}]; give "
                "dynamic_shapes= to let a dimension vary"
            )
        for dim, size in enumerate(sizes):
            lower, upper = self.bounds.get(size, (None, None))
            number = x.shape[dim]
            if (lower is not None and number < lower) or (upper is not None and number > upper):
                raise PartitionError(
                    f"input {name!r} has size {number} in dimension {dim}, and the graph takes {lower} to "
                    f"{'any size' if upper is None else upper}; give dynamic_shapes= with the range that you need"
                )


def refuse_other_sizes(inputs: Sequence[Any], expected: str, bounds: str) -> None:
    """Check the inputs of a call; a split graph begins with this check, as the module's docstring shows.

    Raises:
        TypeError, PartitionError: as `InputSizes.check`.
    """
    if torch.compiler.is_compiling():
        return  # a compiler guards the sizes that it assumes
    shapes = [x.shape if isinstance(x, torch.Tensor) else x for x in inputs]
    if any(isinstance(size, torch.SymInt) for shape in shapes if isinstance(shape, torch.Size) for size in shape):
        return
    key = (expected, bounds, *shapes)
    try:
        if key in _PASSED:
            return
    except TypeError:  # an input that does not hash
        key = ()
    _read(expected, bounds).check(inputs)
    if len(_PASSED) >= _REMEMBERED:
        _PASSED.clear()
    _PASSED.add(key)


# Calls that passed, so that a second call with the same sizes costs one look-up.
_PASSED: set[tuple[Any, ...]] = set()
_REMEMBERED = 4096


@functools.lru_cache(maxsize=64)
def _read(expected: str, bounds: str) -> InputSizes:
    ranges = {sympy.Symbol(name, integer=True, positive=True): r for name, r in json.loads(bounds).items()}

    def sizes(known: Any) -> Any:
        return [s if isinstance(s, int) else from_text(s, ranges) for s in known] if isinstance(known, list) else known

    return InputSizes([(name, sizes(known)) for name, known in json.loads(expected)], ranges)


def write_check(graph: torch.fx.Graph, captured: CapturedGraph) -> None:
    """Write a check of the inputs at the start of a graph, if its original was traced for some sizes only.

    Args:
        graph: the graph, with the inputs of ``captured.gm``.
        captured: the original.
    """
    placeholders = graph.find_nodes(op="placeholder")
    if not captured.is_specialized or not placeholders:
        return
    sizes = InputSizes.of(captured)
    # Like the modules of torch.export: a graph that was traced for two rows or more also accepts fewer.
    bounds = {symbol: [low if low and low > 2 else None, high] for symbol, (low, high) in sizes.bounds.items()}

    def text(known: Any) -> Any:
        return [s if isinstance(s, int) else to_text(s) for s in known] if isinstance(known, list) else known

    expected = json.dumps([[name, text(known)] for name, known in sizes.expected])
    ranges = json.dumps({symbol.name: found for symbol, found in bounds.items()})
    with graph.inserting_after(placeholders[-1]):
        graph.call_function(refuse_other_sizes, (list(placeholders), expected, ranges))


has_side_effect(refuse_other_sizes)
