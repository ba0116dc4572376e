"""Prove, operator by operator, that a graph may be cut along its batch; or name the operator that mixes rows.

The graph runs once on fake tensors, down to ATen operators, and every tensor is tracked: it is the same for all rows,
or the position of the batch in it is known (see `batch_dim` for the terms, `op_rules` for the operators). Sizes are
compared as expressions of the graph's symbols, never as numbers.

Before (B rows)::

    def forward(self, x: [B, S, D], w: [D, D], mask: [S, S]):
        linear = F.linear(x.reshape(-1, D), w)         # [B*S, D]: rows flattened, and still separate
        scores = linear.view(B, S, D) @ x.transpose(1, 2)
        return (scores + mask).softmax(-1)

After: ``Separation("B", {"x": 0}, (0,))``: cut x along dimension 0, give w and mask whole, concatenate along 0.
With ``.softmax(0)`` instead: PartitionError: ``softmax`` works along the batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError

from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import (
    FakeTensorMode,
    enable_python_dispatcher,
    fake_copy,
    has_symbolic_sizes,
    hint_of,
    is_fake,
    new_fake_mode,
    no_new_guards,
    shape_env_of,
)
from ..capture.module_members import all_tensors
from ..capture.symbolic_sizes import to_expr
from ..capture.tensor_subclasses import is_subclass
from ..capture.user_names import module_path
from ..capture.whole_regions import left_modes
from .batch_dim import Batched, NotSeparable, batch_dims, fits, has
from .batch_tracker import Tracker

WAY_OUT = "set microbatches=1 to run the batch whole"


@dataclass(frozen=True)
class Separation:
    """How to run a graph in microbatches.

    Attributes:
        symbol: the name of the batch's symbol.
        equal: names of other symbols that the proof assumes to be equal; where they differ, the batch runs whole. Two
            inputs have different symbols if no operator combines them, as ``x`` and a mask that ``arange(B)`` indexes.
        inputs: the dimension of the batch in each input that has it, by the placeholder's name; all rows share the
            others.
        outputs: the dimension along which each result is concatenated; None for a result that is not a tensor.
        written: the inputs among ``inputs`` that the graph writes, row by row.
    """

    symbol: str
    inputs: Mapping[str, int]
    outputs: tuple[int | None, ...]
    equal: tuple[str, ...] = ()
    written: frozenset[str] = frozenset()


def separate(captured: CapturedGraph) -> Separation:
    """Prove that a graph treats each row of its batch separately.

    The batch is a symbol that is dimension 0 of an input.

    Raises:
        PartitionError: no input has a symbolic dimension 0, or an operator mixes rows; the message names the operator,
            its line in the user's code, what it does, and the way out.

    Example::

        >>> from fx_partition.passes.capture.capture_model import capture
        >>> shapes = ({0: torch.export.Dim("batch", min=2)},)
        >>> captured = capture(torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.randn(3, 4), shapes)
        >>> separate(captured).inputs, separate(captured).outputs
        ({'input_1': 0}, (0,))
    """
    candidates = _candidates(captured)
    tries = [(symbol, ()) for symbol in candidates] + _merged(captured, candidates)
    refusals = []
    for symbol, equal in tries:
        found = _attempt(captured, symbol, equal)
        if isinstance(found, Separation):
            return found
        refusals.append(found)
    if refusals:
        raise refusals[-1 if len(tries) > len(candidates) else 0]
    raise PartitionError(
        "the graph has no batch to cut: no input has a symbolic dimension 0; mark it with "
        "torch._dynamo.mark_dynamic(x, 0), compile with dynamic=True, or export with dynamic_shapes=; or " + WAY_OUT
    )


def _attempt(
    captured: CapturedGraph, symbol: sympy.Symbol, equal: tuple[sympy.Symbol, ...]
) -> Separation | PartitionError:
    try:
        return _Proof(captured, symbol, equal).run()
    except PartitionError as refusal:
        return refusal


def _candidates(captured: CapturedGraph) -> list[sympy.Symbol]:
    """Return the symbols that are dimension 0 of inputs, those of most inputs first."""
    count: dict[sympy.Symbol, int] = {}
    for node in captured.gm.graph.find_nodes(op="placeholder"):
        value = captured.values.get(node)
        if isinstance(value, torch.Tensor) and value.dim() and isinstance(value.shape[0], torch.SymInt):
            size = to_expr(value.shape[0])
            if isinstance(size, sympy.Symbol):
                count[size] = count.get(size, 0) + 1
    return sorted(count, key=lambda symbol: -count[symbol])


def _merged(
    captured: CapturedGraph, candidates: list[sympy.Symbol]
) -> list[tuple[sympy.Symbol, tuple[sympy.Symbol, ...]]]:
    """Return all candidates as one, if they had the same value when the graph was traced."""
    env = shape_env_of(_leaves(captured.values.values()))
    if len(candidates) < 2 or env is None:
        return []
    first, *others = candidates
    equal = tuple(symbol for symbol in others if hint_of(env, symbol) == hint_of(env, first))
    return [(first, equal)] if equal else []


class _Proof:
    """The proof for one symbol; those in ``equal`` are assumed to be equal to it."""

    def __init__(self, captured: CapturedGraph, batch: sympy.Symbol, equal: tuple[sympy.Symbol, ...]) -> None:
        self._captured, self._batch, self._equal = captured, batch, equal
        self._mode = new_fake_mode(shape_env_of(_leaves(captured.values.values())))
        self._size = self._batch_size() if equal else None
        self._tracker = Tracker(batch)
        self._inputs: dict[str, int] = {}

    def run(self) -> Separation:
        arguments = [self._argument(node) for node in self._captured.gm.graph.find_nodes(op="placeholder")]
        interpreter = _Interpreter(self._captured.gm, self._mode, self._tracker)
        with no_new_guards(self._mode.shape_env), torch.no_grad():
            try:
                left = left_modes(self._captured.gm.graph, interpreter.results)
                with left, enable_python_dispatcher(), self._mode, self._tracker:
                    interpreter.run(*arguments, enable_io_processing=False)
            except NotSeparable as mixing:
                raise PartitionError(self._refusal(interpreter.node, mixing)) from None
            except Exception as error:  # an operator may refuse fake tensors with any exception
                reason = NotSeparable(
                    f"does not run on fake tensors ({type(error).__name__}: {str(error).splitlines()[0]})"
                )
                raise PartitionError(self._refusal(interpreter.node, reason)) from error
        return Separation(
            str(self._batch),
            self._inputs,
            self._outputs(interpreter),
            tuple(map(str, self._equal)),
            frozenset(self._tracker.written),
        )

    def _batch_size(self) -> torch.SymInt:
        tensors = [value for value in self._captured.values.values() if isinstance(value, torch.Tensor)]
        sizes: list[Any] = [tensor.shape[0] for tensor in tensors if tensor.dim()]
        return next(s for s in sizes if isinstance(s, torch.SymInt) and to_expr(s) == self._batch)

    def _one(self, size: Any) -> Any:
        """Return a size of an input, with one symbol for all that are assumed to be equal."""
        if isinstance(size, torch.SymInt) and size.node.expr in self._equal:
            return self._size
        return size

    def _argument(self, node: torch.fx.Node) -> Any:
        value = self._captured.values.get(node)
        name = self._captured.names.get(node, node.name)
        if not isinstance(value, torch.Tensor):
            value = self._one(value)
            if has(value, self._batch) and to_expr(value) != self._batch:
                raise PartitionError(f"the input {name} is {to_expr(value)}, made from the batch's size; {WAY_OUT}")
            return value
        if is_subclass(value) and has_symbolic_sizes(value):
            raise PartitionError(f"the input {name} is a {type(value).__name__} with the batch inside; {WAY_OUT}")
        with no_new_guards(self._mode.shape_env):
            fake = fake_copy(self._mode, value, [self._one(s) for s in value.shape])
        dims = batch_dims(fake.shape, self._batch)
        place = Batched(dims[0]) if dims else None
        laid_out_alone = not any(has(stride, symbol) for stride in fake.stride() for symbol in self._equal)
        if not fits(fake.shape, place, self._batch) or not laid_out_alone:
            raise PartitionError(
                f"the input {name} has the shape {list(value.shape)}, in which the batch {self._batch} is not a "
                f"dimension of its own (trace with a batch that differs from the other sizes); {WAY_OUT}"
            )
        if place is not None:
            self._inputs[node.name] = place.dim
        self._tracker.take(fake, place, node.name)
        return fake

    def _outputs(self, interpreter: _Interpreter) -> tuple[int | None, ...]:
        (output,) = self._captured.gm.graph.find_nodes(op="output")
        sources = pytree.tree_leaves(output.args[0], is_leaf=lambda leaf: isinstance(leaf, torch.fx.Node))
        found: list[int | None] = []
        for source in sources:
            value = interpreter.results.get(source) if isinstance(source, torch.fx.Node) else source
            found.append(self._output(source, value))
        return tuple(found)

    def _output(self, source: Any, value: Any) -> int | None:
        if value is None or (isinstance(value, (bool, int, float, str)) and not has(value, self._batch)):
            return None
        what = "returns a number that depends on the batch" if has(value, self._batch) else ""
        if isinstance(value, torch.Tensor):
            place = self._tracker.place(value)
            if place is None:
                what = "is a result without the batch"
            elif place.numbered:
                what = "returns the numbers of the rows, and each microbatch would start again"
            elif (place.outer, place.inner) != (1, 1):
                size = to_expr(value.shape[place.dim])
                what = f"returns a flattened batch: dimension {place.dim} is {size}, and not {self._batch}"
            elif self._tracker.input_of(value) is not None:
                what = f"returns memory of the input {self._tracker.input_of(value)}"
            else:
                return place.dim
        raise PartitionError(self._refusal(source, NotSeparable(what or f"returns a {type(value).__name__}")))

    def _refusal(self, node: torch.fx.Node | None, mixing: NotSeparable) -> str:
        if node is None:
            return f"this graph cannot run in microbatches: it {mixing}; {WAY_OUT}"
        place = ", ".join(filter(None, (self._tracker.operator, _where(node))))
        name = self._captured.names.get(node, node.name)
        return f"this graph cannot run in microbatches: {name} ({place}) {mixing}; {WAY_OUT}"


def _where(node: torch.fx.Node) -> str:
    """Return the module and the line of the user's code that a node comes from."""
    path = module_path(node)
    lines = re.findall(r'File "([^"]*)", line (\d+), in \w+\n\s*(.*)', node.meta.get("stack_trace") or "")
    line = f"{lines[-1][0]}:{lines[-1][1]}: {lines[-1][2]}" if lines else ""
    return ", ".join(filter(None, (f"in {path}" if path else "", line)))


def _leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(list(tree))



class _Interpreter(torch.fx.Interpreter):
    """Runs a graph on fakes; ``node`` is the one that is running, ``results`` are the values so far."""

    def __init__(self, gm: torch.fx.GraphModule, mode: FakeTensorMode, tracker: Tracker) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self._fakes, self._tracker = mode, tracker
        self.extra_traceback = False  # a refusal says where it comes from
        self.node: torch.fx.Node | None = None
        self.results: dict[torch.fx.Node, Any] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        self.node = n
        self._tracker.operator = ""
        self.results[n] = super().run_node(n)
        return self.results[n]


    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = self.fetch_attr(target)
        return self._weight(value, str(target)) if isinstance(value, torch.Tensor) else value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module on fakes of its parameters and buffers."""
        module = self.fetch_attr(target)
        own = {name: self._weight(tensor, f"{target}.{name}") for name, tensor in all_tensors(module).items()}
        return torch.func.functional_call(module, own, args, kwargs)

    def _weight(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        with self._tracker.paused():  # the fake of a view is made by operators that are not in the graph
            if is_fake(tensor):
                fake = fake_copy(self._fakes, tensor, tensor.shape)
            else:
                fake = self._fakes.from_tensor(tensor, static_shapes=True)
        self._tracker.take(fake, None, name)
        return fake
