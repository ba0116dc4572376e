"""The stages of a graph as a program over numbered values, which every pipelined runtime reads.

A request is a table of numbered values: the inputs of the graph and the values that cross boundaries. A step reads
values and weights and writes values. Each value is listed in ``dead`` of the last step that needs it::

    def forward(self, x, weight, weight_1):              values 0: x, 1: relu, 2: linear_1
        relu = partition_0(x, weight)                    step 0: inputs (0, weight),   outputs (1,), dead ()
        linear_1 = partition_1(relu, x, weight_1)        step 1: inputs (1, 0, weight_1), outputs (2,), dead (1, 0)
        return linear_1                                  results (2,)
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.captured_graph import CapturedGraph, value_of
from fx_partition.passes.capture.symbolic_sizes import to_expr
from fx_partition.passes.capture.tensor_storage import storage_key
from fx_partition.passes.split.extract import PartitionGraph

from ..lowering.boundary_strides import Crossings
from ..lowering.derived_sizes import find_derived_sizes, refuse_unreadable, write_derived_sizes
from ..lowering.graph_edits import write_in
from ..lowering.layout_guard import Layout


@dataclass(frozen=True)
class ProgramStep:
    """One stage of a program.

    Attributes:
        index: the number of the stage.
        module: the stage's graph, a copy that belongs to this step; it returns a tuple.
        inputs: its arguments in order: numbers of values, and weights, which are the model's own tensors.
        outputs: the numbers of its results, in order.
        dead: numbers of the values that neither a later step nor a result of the graph needs.
        fake_inputs, fake_outputs: the fake value of each input and output, without gradients.
        layouts: the memory layout of each output; None where nothing depends on it.
        written: the positions of the inputs that the stage writes in place.
        ties_written: whether one of these shares its storage with another input.
    """

    index: int
    module: torch.fx.GraphModule
    inputs: tuple[int | torch.Tensor, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]
    fake_inputs: tuple[Any, ...]
    fake_outputs: tuple[Any, ...]
    layouts: tuple[Layout | None, ...]
    written: tuple[int, ...]
    ties_written: bool

    @property
    def has_tensors_only(self) -> bool:
        """Whether all inputs and outputs are tensors, and none is a number."""
        return all(isinstance(value, torch.Tensor) for value in (*self.fake_inputs, *self.fake_outputs))

    @property
    def is_static(self) -> bool:
        """Whether all inputs and outputs are tensors of static sizes."""
        return self.has_tensors_only and not any(
            isinstance(to_expr(size), sympy.Expr)
            for value in (*self.fake_inputs, *self.fake_outputs)
            for size in value.shape
        )


@dataclass(frozen=True)
class Constant:
    """A leaf of the graph's output that no stage computes: the same object in every request, or a symbolic size."""

    value: Any


@dataclass(frozen=True)
class ResidentState:
    """A buffer of the model of which each session has its own: its name, its tensor, and the number of its value."""

    name: str
    tensor: torch.Tensor
    number: int


@dataclass(frozen=True)
class Program:
    """The stages of a graph, and how a request's table is filled and read.

    Attributes:
        steps: the stages in order.
        num_values: the length of a request's table.
        inputs: for each input of the graph the number of its value, or None where no step and no result needs it.
        results: for each leaf of the graph's output the number of its value, or a `Constant` (a weight, a constant, or
            a size).
        results_tree: the tree that puts the leaves together into the graph's output.
        states: the state that a request brings, as one of several sessions; empty where stages hold the model's own.
    """

    steps: tuple[ProgramStep, ...]
    num_values: int
    inputs: tuple[int | None, ...]
    results: tuple[int | Constant, ...]
    results_tree: pytree.TreeSpec
    states: tuple[ResidentState, ...] = ()


def make_program(
    captured: CapturedGraph,
    partitions: Sequence[PartitionGraph],
    written: frozenset[str],
    *,
    sessions: bool = False,
) -> Program:
    """Number the values that cross the boundaries of a split graph, and make one step of each partition.

    Args:
        captured: the graph.
        partitions: its partitions, from `extract.cut`.
        written: the names of the inputs and weights that the graph writes in place.
        sessions: whether each request brings the buffers that the graph writes, those of its session.

    Raises:
        PartitionError: the graph returns a value that is neither computed by a stage nor an input or a weight, or a
            stage needs a size that cannot be computed from its inputs.
    """
    output = next(iter(reversed(captured.gm.graph.nodes)))
    leaves, results_tree = pytree.tree_flatten(output.args[0])
    crossings = Crossings(partitions, keeps_views=False)
    derived = find_derived_sizes(partitions)
    numbers = _ValueNumbers(captured, partitions, leaves, derived, written, sessions=sessions)
    steps = []
    for index, partition in enumerate(partitions):
        module = copy.deepcopy(partition.module)
        write_derived_sizes(module, partition, derived)
        needed = [node for node in partition.inputs if node not in derived]
        constants = [node for node in needed if _is_constant(value_of(node))]
        for node, placeholder in zip(needed, module.graph.find_nodes(op="placeholder"), strict=True):
            if node in constants:
                write_in(module.graph, placeholder, value_of(node))
        module.recompile()
        inputs = [node for node in needed if node not in constants]
        refuse_unreadable(index, inputs)
        outputs = [node for node in partition.outputs if node not in derived]
        fake_inputs = tuple(_detached(crossings.value(node)) for node in inputs)
        has_tensors_only = all(isinstance(value, torch.Tensor) for value in fake_inputs)
        for placeholder, value in zip(module.graph.find_nodes(op="placeholder"), fake_inputs, strict=True):
            # Inductor's C++ wrapper trusts "val" over the example inputs, and turns the "val" of a number into None.
            placeholder.meta = {"val" if has_tensors_only else "example_value": value}
        with torch.no_grad():
            crossings.settle(module, inputs, fake_inputs, outputs)
        crossings.promise(module, outputs)
        states = [node for node in inputs if numbers.returns_state(node, index)]
        _return_too(module, inputs, states)
        steps.append(
            ProgramStep(
                index=index,
                module=module,
                inputs=tuple(numbers.argument(node) for node in inputs),
                outputs=tuple(numbers.of[node] for node in (*outputs, *states)),
                dead=numbers.dead_after(index),
                fake_inputs=fake_inputs,
                fake_outputs=tuple(_detached(crossings.value(node)) for node in (*outputs, *states)),
                layouts=tuple(layout for _, layout in crossings.layouts((*outputs, *states))),
                written=tuple(place for place, node in enumerate(inputs) if node.name in written),
                ties_written=_ties_written(inputs, captured, written),
            )
        )
    placeholders = captured.gm.graph.find_nodes(op="placeholder")
    return Program(
        steps=tuple(steps),
        num_values=numbers.count,
        inputs=tuple(numbers.of.get(node) for node in placeholders),
        results=tuple(_result(leaf, numbers) for leaf in leaves),
        results_tree=results_tree,
        states=tuple(
            ResidentState(captured.names[node], captured.weights[node].detach(), number)
            for node, number in numbers.of_session.items()
        ),
    )


class _ValueNumbers:
    """Give each value a number, and know the last stage that needs it."""

    def __init__(
        self,
        captured: CapturedGraph,
        partitions: Sequence[PartitionGraph],
        leaves: Sequence[Any],
        derived: set[torch.fx.Node],
        written: frozenset[str],
        *,
        sessions: bool,
    ) -> None:
        self._weights = captured.weights
        self.of: dict[torch.fx.Node, int] = {}
        self.of_session: dict[torch.fx.Node, int] = {}
        last: dict[torch.fx.Node, int] = {}
        for index, partition in enumerate(partitions):
            for node in (*partition.inputs, *partition.outputs):
                if sessions and node in captured.weights and node.name in written:
                    self.of_session.setdefault(node, self.count)
                if node not in captured.weights and node not in derived and not _is_constant(value_of(node)):
                    self.of.setdefault(node, self.count)
                    last[node] = index
        returned = {leaf for leaf in leaves if isinstance(leaf, torch.fx.Node)}
        for node in returned:
            if node.op == "placeholder" and node not in captured.weights:
                self.of.setdefault(node, self.count)
        # A weight that the graph writes and returns needs a value of its own, filled by the last stage that reads it:
        # by the time results are read, the next request may have written the weight again.
        self._states: dict[torch.fx.Node, int] = {}
        for index, partition in enumerate(partitions):
            for node in partition.inputs:
                if node in captured.weights and node in returned and node.name in written:
                    self.of.setdefault(node, self.count)
                    self._states[node] = index
        self._dead: dict[int, list[int]] = {}
        for node, index in last.items():
            if node not in returned:
                self._dead.setdefault(index, []).append(self.of[node])

    @property
    def count(self) -> int:
        """Return how many values have a number."""
        return len(self.of) + len(self.of_session)

    def returns_state(self, node: torch.fx.Node, stage: int) -> bool:
        """Return whether a stage must return one of its inputs, a state, because the graph returns it."""
        return self._states.get(node) == stage

    def argument(self, node: torch.fx.Node) -> int | torch.Tensor:
        """Return the number of a value, or the tensor of a weight."""
        if node in self.of_session:
            return self.of_session[node]
        weight = self._weights.get(node)
        return self.of[node] if weight is None else weight

    def dead_after(self, stage: int) -> tuple[int, ...]:
        """Return the numbers of the values that nothing needs after a stage."""
        return tuple(self._dead.get(stage, ()))

    def result(self, node: torch.fx.Node) -> int | Constant:
        """Return how a result of the graph is found: in the table, or as a constant."""
        if node in self.of:
            return self.of[node]
        if node in self._weights:
            return Constant(self._weights[node])
        value = value_of(node)
        if _is_constant(value) or isinstance(value, torch.SymInt):
            return Constant(value)
        raise PartitionError(
            f"the graph returns {node.name}, which is computed from weights alone; compute it outside the model"
        )


def _ties_written(inputs: Sequence[torch.fx.Node], captured: CapturedGraph, written: frozenset[str]) -> bool:
    """Return whether a weight or state that a stage writes shares its storage with another of the stage's inputs."""
    holders = Counter(storage_key(captured.weights[node]) for node in inputs if node in captured.weights)
    return any(
        node in captured.weights and node.name in written and holders[storage_key(captured.weights[node])] > 1
        for node in inputs
    )


def _return_too(module: torch.fx.GraphModule, inputs: Sequence[torch.fx.Node], more: Sequence[torch.fx.Node]) -> None:
    """Let a stage return some of its inputs after its results."""
    if not more:
        return
    taken = dict(zip(inputs, module.graph.find_nodes(op="placeholder"), strict=True))
    output = next(iter(reversed(module.graph.nodes)))
    output.args = ((*output.args[0], *(taken[node] for node in more)),)
    module.recompile()


def _result(leaf: Any, numbers: _ValueNumbers) -> int | Constant:
    return numbers.result(leaf) if isinstance(leaf, torch.fx.Node) else Constant(leaf)


def _is_constant(value: Any) -> bool:
    return not isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))


def _detached(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with torch.no_grad():
        return value.detach()
