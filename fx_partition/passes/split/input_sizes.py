"""The sizes that a traced graph holds for, and a check of a call's inputs against them.

A tracer writes the sizes of its example into a graph as numbers, unless a dimension was declared dynamic. Called at
other sizes such a graph computes with the old numbers, so a graph that was cut begins with a check::

    refuse_other_sizes([x, mask], '[["x", ["s0", 64]], ["mask", ["s0"]]]', '{"s0": [2, 512]}')

Sizes are text, so that a graph module prints and copies as any other.
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

from ..capture.capture_model import CapturedGraph
from ..capture.fake_tensors import bounds_of, shape_env_of
from ..capture.size_text import from_text, to_text
from ..capture.symbolic_sizes import Size, evaluate, numbers_of, to_expr

Numbers: TypeAlias = "dict[sympy.Symbol, int]"


@dataclass(frozen=True)
class InputSizes:
    """What a graph holds for.

    Attributes:
        expected: of each input its name, and the sizes of a tensor, as a list, or a constant; None where all is right.
        bounds: the smallest and the largest number of each symbol, None where there is no bound.
    """

    expected: Sequence[tuple[str, Any]]
    bounds: Mapping[sympy.Symbol, Sequence[int | None]]

    @classmethod
    def of(cls, captured: CapturedGraph) -> InputSizes:
        """Return what a captured graph holds for."""
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
            TypeError: there is no tensor where one belongs.
            PartitionError: an input has other sizes than the graph holds for; it names the input.
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
                raise PartitionError(f"input {name!r} is {x!r}; the graph holds for {sizes!r} alone")
        return numbers

    def _check_tensor(self, name: str, x: Any, sizes: Sequence[Size], numbers: Numbers) -> None:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"input {name!r} is {type(x).__name__}, and has to be a tensor")
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
                    f"input {name!r} has size {number} in dimension {dim}, and the graph holds for {lower} to "
                    f"{'any size' if upper is None else upper}; give dynamic_shapes= with the range that you need"
                )


def refuse_other_sizes(inputs: Sequence[Any], expected: str, bounds: str) -> None:
    """Check the inputs of a call; a cut graph begins with it. See the module's docstring.

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


# Calls that passed, so that a second one of the same sizes costs a look-up.
_PASSED: set[tuple[Any, ...]] = set()
_REMEMBERED = 4096


@functools.lru_cache(maxsize=64)
def _read(expected: str, bounds: str) -> InputSizes:
    ranges = {sympy.Symbol(name, integer=True, positive=True): r for name, r in json.loads(bounds).items()}

    def sizes(known: Any) -> Any:
        return [s if isinstance(s, int) else from_text(s, ranges) for s in known] if isinstance(known, list) else known

    return InputSizes([(name, sizes(known)) for name, known in json.loads(expected)], ranges)


def write_check(graph: torch.fx.Graph, captured: CapturedGraph) -> None:
    """Let a graph begin with a check of its inputs, where the graph that it was made of holds for some sizes only.

    Args:
        graph: takes the inputs of ``captured.gm``.
    """
    placeholders = graph.find_nodes(op="placeholder")
    if not captured.is_specialized or not placeholders:
        return
    sizes = InputSizes.of(captured)
    # As torch.export's own module: what was traced for two rows and more is taken to hold for fewer.
    bounds = {symbol: [low if low and low > 2 else None, high] for symbol, (low, high) in sizes.bounds.items()}

    def text(known: Any) -> Any:
        return [s if isinstance(s, int) else to_text(s) for s in known] if isinstance(known, list) else known

    expected = json.dumps([[name, text(known)] for name, known in sizes.expected])
    ranges = json.dumps({symbol.name: found for symbol, found in bounds.items()})
    with graph.inserting_after(placeholders[-1]):
        graph.call_function(refuse_other_sizes, (list(placeholders), expected, ranges))


has_side_effect(refuse_other_sizes)
