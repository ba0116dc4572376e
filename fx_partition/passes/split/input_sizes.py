"""Check the inputs of a call against the sizes that its graph was traced for.

A tracer writes the sizes of its example into a graph as numbers, unless a dimension was declared dynamic. Called with
other sizes, such a graph would compute with the old numbers, so a split graph begins with a check::

    refuse_other_sizes([x, mask], '[["x", ["s0", 64]], ["mask", ["s0"]]]', '{"s0": [2, 512]}')

Sizes are text, so that the graph module prints and copies like any other. Where a plan fits up to some sizes only, the
function is a `WatchedSizes` of the same name, which also warns of a call beyond them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
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
from ..plan.plan import Plan
from ..plan.plan_range import PlanRange

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
        numbers = self.numbers(inputs)
        for x, (name, sizes) in zip(inputs, self.expected, strict=True):
            if isinstance(sizes, list):
                self._check_tensor(name, x, sizes, numbers)
            elif sizes is not None and x != sizes:
                raise PartitionError(
                    f"input {name!r} is {x!r}, and the graph was traced for {sizes!r} only; pass {sizes!r}, or split "
                    "the model again with the new value"
                )
        return numbers

    def numbers(self, inputs: Sequence[Any]) -> Numbers:
        """Return the number of each symbol that the inputs of a call show, without a check."""
        found: Numbers = numbers_of(
            (size, number)
            for x, (_, sizes) in zip(inputs, self.expected, strict=True)
            if isinstance(sizes, list) and isinstance(x, torch.Tensor) and x.dim() == len(sizes)
            for size, number in zip(sizes, x.shape, strict=True)
        )
        return found

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
    _if_new(inputs, expected, bounds, _PASSED, InputSizes.check)


def accept_all_sizes(inputs: Sequence[Any], expected: str, bounds: str) -> None:
    """Do nothing: the place in a graph that takes all sizes where a `WatchedSizes` of this name looks at them."""


class WatchedSizes:
    """A check of one split module, which also warns of the first call beyond the sizes for which its plan fits.

    To fx it is the function that it stands for: a graph prints the function's name, and keeps the call. Saved code
    calls the function itself.

    Args:
        function: `refuse_other_sizes` or `accept_all_sizes`.
        limits: the sizes for which the plan fits.
        symbols: the plan's symbols by name.
    """

    def __init__(
        self, function: Callable[..., None], limits: PlanRange, symbols: Mapping[str, sympy.Symbol]
    ) -> None:
        self._limits, self._symbols, self.function = limits, symbols, function
        self._read = InputSizes.check if function is refuse_other_sizes else InputSizes.numbers
        self._passed: set[tuple[Any, ...]] = set()
        self.__name__, self.__module__, self.__qualname__ = function.__name__, function.__module__, function.__name__

    def __call__(self, inputs: Sequence[Any], expected: str, bounds: str) -> None:
        numbers = _if_new(inputs, expected, bounds, self._passed, self._read)
        if numbers:
            known = {symbol.name: number for symbol, number in numbers.items()}
            self._limits.check({self._symbols[name]: n for name, n in known.items() if name in self._symbols})

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.function

    def __hash__(self) -> int:
        return hash(self.function)


def _if_new(
    inputs: Sequence[Any], expected: str, bounds: str, passed: set[tuple[Any, ...]], read: Callable[..., Numbers]
) -> Numbers | None:
    """Read the inputs of a call if its sizes are new, and return the number of each symbol; None if they are not.

    Args:
        passed: calls that passed, so that a second call with the same sizes costs one look-up.
        read: the function of an `InputSizes` that reads them.
    """
    if torch.compiler.is_compiling():
        return None  # a compiler guards the sizes that it assumes
    shapes = [x.shape if isinstance(x, torch.Tensor) else x for x in inputs]
    key = (expected, bounds, *shapes)
    try:
        if key in passed:
            return None
    except TypeError:  # an input that does not hash, or a symbolic size
        key = ()
    if any(isinstance(size, torch.SymInt) for shape in shapes if isinstance(shape, torch.Size) for size in shape):
        return None
    numbers = read(_read(expected, bounds), inputs)
    if len(passed) >= _REMEMBERED:
        passed.clear()
    passed.add(key)
    return numbers


_PASSED: set[tuple[Any, ...]] = set()
_REMEMBERED = 4096


@functools.lru_cache(maxsize=64)
def _read(expected: str, bounds: str) -> InputSizes:
    ranges = {sympy.Symbol(name, integer=True, positive=True): r for name, r in json.loads(bounds).items()}

    def sizes(known: Any) -> Any:
        return [s if isinstance(s, int) else from_text(s, ranges) for s in known] if isinstance(known, list) else known

    return InputSizes([(name, sizes(known)) for name, known in json.loads(expected)], ranges)


def write_check(graph: torch.fx.Graph, captured: CapturedGraph, plan: Plan) -> None:
    """Write a check of the inputs at the start of a graph, if it takes some sizes only, or its plan fits some only.

    Args:
        graph: the graph, with the inputs of ``captured.gm``.
        captured: the original; it takes some sizes only if it was traced for them.
        plan: the plan that it is split by.
    """
    placeholders = graph.find_nodes(op="placeholder")
    limits = PlanRange.of(plan, "split the model with bind= for such sizes, to plan for them")
    if not placeholders or not (captured.is_specialized or limits):
        return
    function: Callable[..., None] = refuse_other_sizes if captured.is_specialized else accept_all_sizes
    if limits:
        function = WatchedSizes(function, limits, {symbol.name: symbol for symbol in plan.symbols.hints})
    sizes = InputSizes.of(captured)
    # Like the modules of torch.export: a graph that was traced for two rows or more also accepts fewer.
    bounds = {symbol: [low if low and low > 2 else None, high] for symbol, (low, high) in sizes.bounds.items()}

    def text(known: Any) -> Any:
        return [s if isinstance(s, int) else to_text(s) for s in known] if isinstance(known, list) else known

    expected = json.dumps([[name, text(known)] for name, known in sizes.expected])
    ranges = json.dumps({symbol.name: found for symbol, found in bounds.items()})
    with graph.inserting_after(placeholders[-1]):
        graph.call_function(function, (list(placeholders), expected, ranges))


has_side_effect(refuse_other_sizes)
has_side_effect(accept_all_sizes)
