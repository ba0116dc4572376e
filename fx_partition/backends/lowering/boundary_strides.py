"""The strides of tensors that cross a boundary: those that the stage which makes them really gives them.

The strides of the trace are not to be relied on. A tracer may run other kernels than the compiler (a fake kernel that
knows no channels_last, an attention chosen by whether a mask needs a gradient), and a view with gaps does not cross as
it is. Each such difference changes the strides of all that is computed from the value. So the stages are run on fake
tensors one after another, as a compiler runs them: each on what it receives, under inductor's decompositions. What a
stage makes so is what the next one is compiled for.

A compiled stage keeps that promise in its graph, by `in_order`: nothing where its compiler agrees, else a copy. A view
with gaps or overlaps crosses without them, as inductor keeps them at times only; so the graph returns it without them
too where it crosses as well. In line a view of a stage's own argument is left as it is.

Before: ``linear = F.linear(x, w); part = linear[:, :8]; return (part,)``
After:  ``linear = F.linear(x, w); part = linear[:, :8]; in_order = in_order(part, (0, 1)); return (in_order,)``
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
import torch.fx

from fx_partition.passes.capture.capture_model import value_of
from fx_partition.passes.capture.fake_tensors import (
    FakeTensor,
    enable_python_dispatcher,
    hint_of,
    no_new_guards,
    run_fake,
    shape_env_of,
)
from fx_partition.passes.capture.graph_symbols import unbacked_in
from fx_partition.passes.capture.shape_propagation import ShapeInterpreter
from fx_partition.passes.capture.symbolic_sizes import evaluate, to_expr
from fx_partition.passes.capture.whole_regions import left_modes, opens_whole_region
from fx_partition.passes.split.extract import PartitionGraph

from .layout_guard import Layout
from .stage_key import stage_key
from .torch_internals import InductorDecompositions

_log = logging.getLogger(__name__)

_NUMBERS = (bool, int, float, torch.SymBool, torch.SymInt, torch.SymFloat)


def in_order(tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Return a tensor that fills its memory, dimension ``order[0]`` outermost: the tensor itself where it does so.

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
    """Return a copy of a tensor in an order, dimension ``order[0]`` outermost.

    A stage of symbolic sizes returns an argument seen as another dtype in this way: torch makes such a result again
    from the argument, and forgets the dtype where sizes are symbolic.
    """
    return in_order(tensor.clone(), order)


def memory_order(value: torch.Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost, by the strides of the trace."""
    strides = _numbers(value)
    return sorted(range(len(strides)), key=lambda d: -strides[d])


def is_dense(value: torch.Tensor) -> bool:
    """Whether a fake tensor fills its storage, each element once: then a tensor like it has its strides."""
    assert isinstance(value, FakeTensor)
    twin = run_fake(value.fake_mode, torch.empty_like, (value,), {})
    return [to_expr(stride) for stride in value.stride()] == [to_expr(stride) for stride in twin.stride()]


def _numbers(value: torch.Tensor) -> list[int]:
    """The strides that the trace saw; sizes that a tracer gives no number are large."""
    env = shape_env_of([value])
    strides = [to_expr(stride) for stride in value.stride()]
    symbols = {s for stride in strides if not isinstance(stride, int) for s in stride.free_symbols}
    if env is None or not symbols:
        return [evaluate(stride, {}) for stride in strides]
    numbers = {symbol: hint_of(env, symbol) for symbol in symbols - unbacked_in(value)}
    return [evaluate(stride, numbers) for stride in strides]


class Crossings:
    """The fake values of what crosses the boundaries of a graph, with the strides that they cross with.

    Stages must be settled in order, each with what it takes.

    Args:
        stubs: all partitions of the graph.
        keeps_views: whether a view with gaps of a stage's argument crosses as it is.
    """

    def __init__(self, stubs: Iterable[PartitionGraph], *, keeps_views: bool) -> None:
        self._keeps_views = keeps_views
        self._taken = {node for stub in stubs for node in stub.inputs}
        self._values: dict[torch.fx.Node, torch.Tensor] = {}
        self._layouts: dict[torch.fx.Node, Layout] = {}
        self._retyped: set[torch.fx.Node] = set()
        self._found: dict[Hashable, list[tuple[Any, bool]]] = {}

    def value(self, node: torch.fx.Node) -> Any:
        """The fake value of a node as it crosses, or as its stage makes it; that of the trace where none is settled."""
        return self._values.get(node, value_of(node))

    def layouts(self, nodes: Iterable[torch.fx.Node]) -> tuple[tuple[str, Layout | None], ...]:
        """For each result of a stage its name and the layout that it promises, None where it promises nothing."""
        return tuple((node.name, self._layouts.get(node)) for node in nodes)

    def settle(
        self,
        module: torch.fx.GraphModule,
        inputs: Sequence[torch.fx.Node],
        takes: Sequence[Any],
        outputs: Sequence[torch.fx.Node],
    ) -> None:
        """Find what a stage makes, by running it on fake tensors once for all stages that are alike.

        Args:
            module: the stage's graph; it is not changed.
            inputs, outputs: the node of the whole graph that each of its arguments and results is.
            takes: what the stage will be compiled with.
        """
        traced = [value_of(node) for node in outputs]
        if not any(type(value) is FakeTensor and value.layout == torch.strided for value in traced):
            return
        key = stage_key(module, takes, traced)
        if key not in self._found:
            self._found[key] = _run(module, takes, traced, [*map(value_of, inputs)])
        for node, value, (made, is_of_argument) in zip(outputs, traced, self._found[key], strict=True):
            if type(value) is not FakeTensor or value.layout != torch.strided:
                continue
            if _varies(value) and _is_retyped(value, map(value_of, inputs)):
                self._retyped.add(node)
            dense = is_dense(made)
            if self._keeps_views and not dense and is_of_argument:
                self._keep(node, value, made)
            elif dense or node in self._taken:  # a dense result of the graph too, as its stage may be like another
                ordered = dense or _has_order(made)
                self._layouts[node] = Layout(tuple(memory_order(made) if ordered else range(made.dim())))
                self._values[node] = _laid_out(value, self._layouts[node])

    def _keep(self, node: torch.fx.Node, value: torch.Tensor, made: torch.Tensor) -> None:
        """A view with gaps of an argument: the caller may write into it, and inductor makes it anew of the argument."""
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
        """Let a stage's own copy of its graph lay its results out in the orders that it promises."""
        output = next(iter(reversed(module.graph.nodes)))
        results = output.args[0]
        assert isinstance(results, tuple)
        layouts = [self._layouts.get(node) for node in outputs]
        with module.graph.inserting_before(output):
            output.args = (
                tuple(
                    module.graph.call_function(self._lay_out(node), (result, layout.order))
                    if layout and layout.order is not None
                    else result
                    for node, layout, result in zip(outputs, layouts, results, strict=True)
                ),
            )
        module.recompile()

    def _lay_out(self, node: torch.fx.Node) -> Callable[[torch.Tensor, Sequence[int]], torch.Tensor]:
        return in_memory_of_its_own if node in self._retyped else in_order


def _has_order(value: torch.Tensor) -> bool:
    """Whether the strides of a tensor with gaps put its dimensions in an order; eager lays out so what it computes of
    it."""
    strides = [s for s, size in zip(_numbers(value), map(to_expr, value.shape), strict=True) if size != 1]
    return 0 not in strides and len(set(strides)) == len(strides)


def _varies(value: torch.Tensor) -> bool:
    """Whether a size or stride of a tensor is symbolic."""
    return not all(isinstance(to_expr(size), int) for size in (*value.shape, *value.stride()))


def _is_retyped(result: torch.Tensor, arguments: Iterable[Any]) -> bool:
    """Whether a result is the memory of an argument of another dtype."""
    return _is_in_memory_of(result, (v for v in arguments if isinstance(v, torch.Tensor) and v.dtype != result.dtype))


def _is_in_memory_of(result: torch.Tensor, arguments: Iterable[Any]) -> bool:
    storage = id(result.untyped_storage())
    return any(isinstance(value, torch.Tensor) and id(value.untyped_storage()) == storage for value in arguments)


def _run(
    module: torch.fx.GraphModule, takes: Sequence[Any], traced: list[Any], arguments: Sequence[Any]
) -> list[tuple[Any, bool]]:
    """What a stage makes, as a compiler of it would find, and whether it is memory of an argument.

    As the trace says where the stage does not run on fakes. A stage that writes a copy of what it takes returns views
    of that copy, which the trace takes for views of the argument.
    """
    in_trace = [(t, isinstance(t, torch.Tensor) and _is_in_memory_of(t, arguments)) for t in traced]
    mode = next((value.fake_mode for value in takes if isinstance(value, FakeTensor)), None)
    if mode is None or any(map(opens_whole_region, module.graph.nodes)):
        return in_trace
    interpreter = _StageInterpreter(module, mode)
    grad_mode = torch.set_grad_enabled(torch.is_grad_enabled())  # the graph may leave another than it found
    try:
        with grad_mode, no_new_guards(mode.shape_env), enable_python_dispatcher(), mode:
            stand_ins = [_stand_in(value) for value in takes]
            with left_modes(module.graph, interpreter.values), InductorDecompositions():
                made = list(interpreter.run(*stand_ins, enable_io_processing=False))
    except Exception as error:  # an operator may refuse these fakes; the promise is kept whatever it is
        _log.debug("the strides of a stage's results are those of the trace: %s: %s", type(error).__name__, error)
        return in_trace
    return [
        (m, _is_in_memory_of(m, stand_ins)) if _is_like(m, found[0]) else found
        for m, found in zip(made, in_trace, strict=True)
    ]


class _StageInterpreter(ShapeInterpreter):
    """Takes numbers from the trace: a fake tensor has no contents that ``item()`` could read."""

    def run_node(self, n: torch.fx.Node) -> Any:
        traced = value_of(n)
        if n.op == "placeholder" or not isinstance(traced, _NUMBERS):
            return super().run_node(n)
        self.values[n] = traced
        return traced



def _is_like(made: Any, traced: Any) -> bool:
    """Whether two fake values differ in their strides alone."""
    if type(made) is not FakeTensor or not isinstance(traced, torch.Tensor):
        return False
    return made.dtype == traced.dtype and [*map(to_expr, made.shape)] == [*map(to_expr, traced.shape)]


def _stand_in(value: Any) -> Any:
    """A fake tensor like another that a graph may write."""
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    made.requires_grad_(value.requires_grad)
    return made if value.is_leaf else made.view_as(made)


def _laid_out(value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A fake value of another layout; itself where it has that."""
    assert isinstance(value, FakeTensor)
    with torch.no_grad():
        result = run_fake(value.fake_mode, in_order, (value, layout.order), {})
    assert isinstance(result, torch.Tensor)
    return result
