"""Find the strides with which tensors cross a boundary: those that the stage which makes them really returns.

The strides of the trace can be wrong. A tracer may run other kernels than the compiler (a fake kernel without
channels_last, an attention that depends on whether a mask needs a gradient), and a view with gaps does not cross as it
is. Each such difference changes the strides of all values that are computed from the first. So the stages are run on
fake tensors one after another, as a compiler runs them: each on the inputs that it receives, under inductor's
decompositions. The next stage is compiled for the strides of these results.

A compiled stage keeps this promise in its graph, by `in_order`, which copies only where inductor chose other strides. A
view with gaps or overlaps crosses without them, as inductor keeps them only sometimes; where such a value crosses and
is also a result of the graph, the graph returns it without them too. In line a view of a stage's argument is kept.

Before: ``linear = F.linear(x, w); part = linear[:, :8]; return (part,)``
After:  ``linear = F.linear(x, w); part = linear[:, :8]; in_order = in_order(part, (0, 1)); return (in_order,)``
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
import torch.fx

from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.capture.fake_tensors import (
    FakeTensor,
    enable_python_dispatcher,
    fake_mode_of,
    hint_of,
    is_fake,
    no_new_guards,
    run_fake,
    shape_env_of,
)
from fx_partition.passes.capture.graph_symbols import unbacked_in
from fx_partition.passes.capture.shape_propagation import ShapeInterpreter
from fx_partition.passes.capture.symbolic_sizes import evaluate, to_expr
from fx_partition.passes.capture.tensor_subclasses import plain_tensors, rebuilt
from fx_partition.passes.capture.whole_regions import left_modes, opens_whole_region
from fx_partition.passes.split.extract import PartitionGraph

from .layout_guard import Layout
from .stage_key import stage_key
from .torch_internals import InductorDecompositions

_log = logging.getLogger(__name__)

_NUMBERS = (bool, int, float, torch.SymBool, torch.SymInt, torch.SymFloat)


def in_order(tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Return a tensor without gaps, dimension ``order[0]`` outermost: the tensor itself where it is laid out so.

    Example::

        >>> x = torch.zeros(2, 3)
        >>> in_order(x, (0, 1)) is x, in_order(x, (1, 0)).stride()
        (True, (1, 2))
    """
    permuted = tensor.permute(tuple(order))
    dense = permuted.contiguous()
    if dense is permuted:
        return tensor
    return dense.permute(tuple(order.index(d) for d in range(len(order))))


def in_memory_of_its_own(tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Return a copy of a tensor without gaps, dimension ``order[0]`` outermost.

    A stage with symbolic sizes returns a view of an argument with another dtype in this way: AOTAutograd makes such a
    result again from the argument, and loses the dtype where sizes are symbolic.
    """
    return in_order(tensor.clone(), order)


def memory_order(value: torch.Tensor) -> list[int]:
    """Return the dimensions from the outermost in memory to the innermost, by the strides of the trace."""
    strides = _numbers(value)
    return sorted(range(len(strides)), key=lambda d: -strides[d])


def is_dense(value: torch.Tensor) -> bool:
    """Return whether a fake tensor has neither gaps nor overlaps: then ``empty_like`` has the same strides."""
    assert isinstance(value, FakeTensor)
    twin = run_fake(value.fake_mode, torch.empty_like, (value,), {})
    return [to_expr(stride) for stride in value.stride()] == [to_expr(stride) for stride in twin.stride()]


def _numbers(value: torch.Tensor) -> list[int]:
    """Return the strides as numbers of the trace; a size for which the trace has no number counts as large."""
    env = shape_env_of([value])
    strides = [to_expr(stride) for stride in value.stride()]
    symbols = {s for stride in strides if not isinstance(stride, int) for s in stride.free_symbols}
    if env is None or not symbols:
        return [evaluate(stride, {}) for stride in strides]
    numbers = {symbol: hint_of(env, symbol) for symbol in symbols - unbacked_in(value)}
    return [evaluate(stride, numbers) for stride in strides]


class Crossings:
    """The fake values that cross the boundaries of a graph, with the strides that they really have.

    `settle` must be called for the stages in order.

    Args:
        partitions: all partitions of the graph.
        keeps_views: whether a view of a stage's argument crosses with its gaps.
    """

    def __init__(self, partitions: Iterable[PartitionGraph], *, keeps_views: bool) -> None:
        self._keeps_views = keeps_views
        self._taken = {node for partition in partitions for node in partition.inputs}
        self._values: dict[torch.fx.Node, torch.Tensor] = {}
        self._layouts: dict[torch.fx.Node, Layout] = {}
        self._retyped: set[torch.fx.Node] = set()
        self._left_alone: set[torch.fx.Node] = set()
        self._found: dict[Hashable, tuple[bool, list[tuple[Any, bool]]]] = {}

    def value(self, node: torch.fx.Node) -> Any:
        """Return the fake value of a node with the strides that its stage returns; the trace's before `settle`."""
        return self._values.get(node, value_of(node))

    def layouts(self, nodes: Iterable[torch.fx.Node]) -> tuple[tuple[str, Layout | None], ...]:
        """Return for each result of a stage its name and its promised layout; None where nothing is promised."""
        return tuple((node.name, self._layouts.get(node)) for node in nodes)

    def settle(
        self,
        module: torch.fx.GraphModule,
        inputs: Sequence[torch.fx.Node],
        takes: Sequence[Any],
        outputs: Sequence[torch.fx.Node],
    ) -> None:
        """Find the strides of a stage's results by running it on fake tensors, once for all stages of one key.

        Args:
            module: the stage's graph; it is not changed.
            inputs, outputs: the nodes of the whole graph that its arguments and results stand for.
            takes: the fake inputs that the stage will be compiled for.
        """
        traced = [value_of(node) for node in outputs]
        if not any(type(value) is FakeTensor and value.layout == torch.strided for value in traced):
            return
        key = stage_key(module, takes, traced)
        if key not in self._found:
            # A region of torch.func is not run, and the trace may be wrong about a result whose metadata it changes.
            runs = not any(map(opens_whole_region, module.graph.nodes))
            self._found[key] = runs, _run(module, takes, traced, [*map(value_of, inputs)], runs)
        runs, found = self._found[key]
        for node, value, (made, is_of_argument) in zip(outputs, traced, found, strict=True):
            if type(value) is not FakeTensor or value.layout != torch.strided:
                continue
            if _varies(value) and _is_retyped(value, map(value_of, inputs)):
                self._retyped.add(node)
            dense = is_dense(made)
            if self._keeps_views and not dense and is_of_argument:
                self._keep(node, value, made)
            elif (dense and runs) or node in self._taken:
                # A dense result of the graph too: its stage may share its code with a stage whose result crosses.
                ordered = dense or _has_order(made)
                self._layouts[node] = Layout(tuple(memory_order(made) if ordered else range(made.dim())))
                self._values[node] = _laid_out(value, self._layouts[node])
                if self._keeps_views and is_of_argument and node not in self._retyped:
                    # At each call AOTAutograd makes such a view from the argument: its strides are right already.
                    # In its trace of the stage a write is a new tensor, which may have other strides (`index_copy_`
                    # returns a contiguous one), so `in_order` would return a copy there and not the view.
                    self._left_alone.add(node)

    def _keep(self, node: torch.fx.Node, value: torch.Tensor, made: torch.Tensor) -> None:
        """Keep the gaps of a view of an argument: the caller may write into it, and inductor makes it from that."""
        strides = tuple(map(to_expr, made.stride()))
        if all(isinstance(stride, int) for stride in strides):
            self._layouts[node] = Layout(None, strides)
        if strides != tuple(map(to_expr, value.stride())):
            assert isinstance(value, FakeTensor)
            with no_new_guards(value.fake_mode.shape_env), value.fake_mode:
                self._values[node] = torch.empty_strided(
                    value.shape, made.stride(), dtype=value.dtype, device=value.device
                )

    def promise(self, module: torch.fx.GraphModule, outputs: Sequence[torch.fx.Node]) -> None:
        """Let a stage's own copy of its graph return its results in the promised layouts."""
        output = next(iter(reversed(module.graph.nodes)))
        results = output.args[0]
        assert isinstance(results, tuple)
        layouts = [self._layouts.get(node) for node in outputs]
        with module.graph.inserting_before(output):
            output.args = (
                tuple(
                    module.graph.call_function(self._lay_out(node), (result, layout.order))
                    if layout and layout.order is not None and node not in self._left_alone
                    else result
                    for node, layout, result in zip(outputs, layouts, results, strict=True)
                ),
            )
        module.recompile()

    def _lay_out(self, node: torch.fx.Node) -> Callable[[torch.Tensor, Sequence[int]], torch.Tensor]:
        return in_memory_of_its_own if node in self._retyped else in_order


def _has_order(value: torch.Tensor) -> bool:
    """Return whether the strides of a tensor with gaps order its dimensions; eager results have this order."""
    strides = [s for s, size in zip(_numbers(value), map(to_expr, value.shape), strict=True) if size != 1]
    return 0 not in strides and len(set(strides)) == len(strides)


def _varies(value: torch.Tensor) -> bool:
    """Return whether a size or stride of a tensor is symbolic."""
    return not all(isinstance(to_expr(size), int) for size in (*value.shape, *value.stride()))


def _is_retyped(result: torch.Tensor, arguments: Iterable[Any]) -> bool:
    """Return whether a result is in the memory of an argument of another dtype."""
    return _is_in_memory_of(result, (v for v in arguments if isinstance(v, torch.Tensor) and v.dtype != result.dtype))


def _is_in_memory_of(result: torch.Tensor, arguments: Iterable[Any]) -> bool:
    storages = {id(plain.untyped_storage()) for plain in plain_tensors(result)}
    tensors = (value for value in arguments if isinstance(value, torch.Tensor))
    return any(id(plain.untyped_storage()) in storages for value in tensors for plain in plain_tensors(value))


def _run(
    module: torch.fx.GraphModule, takes: Sequence[Any], traced: list[Any], arguments: Sequence[Any], runs: bool
) -> list[tuple[Any, bool]]:
    """Return each result of a stage as inductor would see it, and whether it is in the memory of an argument.

    Where the stage cannot run on fake tensors, return the results of the trace. Both may differ: a stage that writes a
    copy of an argument returns views of the copy, where the trace has views of the argument.
    """
    in_trace = [(t, isinstance(t, torch.Tensor) and _is_in_memory_of(t, arguments)) for t in traced]
    if not runs or not any(map(is_fake, takes)):
        return in_trace
    mode = fake_mode_of(takes)
    interpreter = _StageInterpreter(module, mode)
    grad_mode = torch.set_grad_enabled(torch.is_grad_enabled())  # the graph may leave another mode than it found
    try:
        with grad_mode, no_new_guards(mode.shape_env), enable_python_dispatcher(), mode:
            dummy_inputs = [_dummy_input(value) for value in takes]
            with left_modes(module.graph, interpreter.values), InductorDecompositions():
                made = list(interpreter.run(*dummy_inputs, enable_io_processing=False))
    except Exception as error:  # an operator may refuse these fakes; the graph keeps the promise for any strides
        _log.debug("the strides of a stage's results are those of the trace: %s: %s", type(error).__name__, error)
        return in_trace
    return [
        (m, _is_in_memory_of(m, dummy_inputs)) if _is_like(m, found[0]) else found
        for m, found in zip(made, in_trace, strict=True)
    ]


class _StageInterpreter(ShapeInterpreter):
    """Takes numbers from the trace, as a fake tensor has no contents that ``item()`` could read."""

    def run_node(self, n: torch.fx.Node) -> Any:
        traced = value_of(n)
        if n.op == "placeholder" or not isinstance(traced, _NUMBERS):
            return super().run_node(n)
        self.values[n] = traced
        return traced


def _is_like(made: Any, traced: Any) -> bool:
    """Return whether two fake values differ in nothing but their strides."""
    if type(made) is not FakeTensor or not isinstance(traced, torch.Tensor):
        return False
    return made.dtype == traced.dtype and [*map(to_expr, made.shape)] == [*map(to_expr, traced.shape)]


def _dummy_input(value: Any) -> Any:
    """Return a fake tensor like another, which a graph may write."""
    if not isinstance(value, torch.Tensor):
        return value
    made = rebuilt(value, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device))
    made.requires_grad_(value.requires_grad)
    return made if value.is_leaf else made.view_as(made)


def _laid_out(value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return a fake value with another layout, or itself where it has this layout."""
    assert isinstance(value, FakeTensor)
    with torch.no_grad():
        result = run_fake(value.fake_mode, in_order, (value, layout.order), {})
    assert isinstance(result, torch.Tensor)
    return result
