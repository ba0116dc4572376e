"""The stages of a graph as a program over numbered values, which every pipelined runtime reads.

A request is a table of values: inputs of the graph and tensors that cross boundaries, each with a number. A step takes
values and weights, and makes values; the last step that needs a value names it dead::

    def forward(self, x, weight, weight_1):              values 0: x, 1: relu, 2: linear_1
        relu = partition_0(x, weight)                    step 0: inputs (0, weight),   outputs (1,), dead ()
        linear_1 = partition_1(relu, x, weight_1)        step 1: inputs (1, 0, weight_1), outputs (2,), dead (1, 0)
        return linear_1                                  results (2,)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.capture_model import CapturedGraph, value_of
from fx_partition.passes.capture.symbolic_sizes import to_expr
from fx_partition.passes.split.extract import PartitionGraph

from ..lowering.boundary_strides import Crossings
from ..lowering.derived_sizes import refuse_unreadable, told_sizes, write_told_sizes
from ..lowering.graph_edits import write_in
from ..lowering.layout_guard import Layout


@dataclass(frozen=True)
class Step:
    """One stage.

    Attributes:
        index: which stage.
        module: its graph, an own copy; it returns a tuple.
        inputs: what it takes in order: numbers of values, and weights.
        outputs: numbers of the values that it makes, in order.
        dead: values that no later step and no result needs.
        takes, makes: the fake values of inputs and outputs, without gradients.
        layouts: how each of its results is laid out in memory; None where nothing depends on it.
        writes: whether it changes what it takes.
    """

    index: int
    module: torch.fx.GraphModule
    inputs: tuple[int | torch.Tensor, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]
    takes: tuple[Any, ...]
    makes: tuple[Any, ...]
    layouts: tuple[Layout | None, ...]
    writes: bool

    @property
    def is_of_tensors(self) -> bool:
        """Whether only tensors go in and out, and no numbers."""
        return all(isinstance(value, torch.Tensor) for value in (*self.takes, *self.makes))

    @property
    def is_static(self) -> bool:
        """Whether no size of what goes in and out is symbolic."""
        return self.is_of_tensors and not any(
            isinstance(to_expr(size), sympy.Expr) for value in (*self.takes, *self.makes) for size in value.shape
        )


@dataclass(frozen=True)
class Constant:
    """A leaf of the output that is the same for every request, or a size that follows from the inputs' sizes."""

    value: Any


@dataclass(frozen=True)
class Program:
    """All stages in order.

    Attributes:
        steps: the stages.
        num_values: size of a request's table.
        inputs: for each input of the graph its value's number, or None where no step and no result needs it.
        results: for each leaf of the graph's output a value's number, or what it is: a weight, a constant or a size.
        results_tree: how the leaves make what the graph returns.
    """

    steps: tuple[Step, ...]
    num_values: int
    inputs: tuple[int | None, ...]
    results: tuple[int | Constant, ...]
    results_tree: pytree.TreeSpec


def make_program(captured: CapturedGraph, stubs: Sequence[PartitionGraph], written: frozenset[str]) -> Program:
    """Number what crosses the boundaries of a cut graph.

    Args:
        captured, stubs: as `extract.cut` gives them.
        written: names of the nodes that the graph writes.

    Raises:
        PartitionError: the graph returns what is neither made by a stage, nor an input or a weight, or a stage takes a
            size that cannot be read there.
    """
    output = next(iter(reversed(captured.gm.graph.nodes)))
    leaves, results_tree = pytree.tree_flatten(output.args[0])
    crossings = Crossings(stubs, keeps_views=False)
    told = told_sizes(stubs)
    numbers = _Numbers(captured, stubs, leaves, told, written)
    steps = []
    for index, stub in enumerate(stubs):
        module = copy.deepcopy(stub.module)
        write_told_sizes(module, stub, told)
        taken = [node for node in stub.inputs if node not in told]
        constants = [node for node in taken if _is_constant(value_of(node))]
        for node, placeholder in zip(taken, module.graph.find_nodes(op="placeholder"), strict=True):
            if node in constants:
                write_in(module.graph, placeholder, value_of(node))
        module.recompile()
        inputs = [node for node in taken if node not in constants]
        refuse_unreadable(index, inputs)
        outputs = [node for node in stub.outputs if node not in told]
        takes = tuple(_detached(crossings.value(node)) for node in inputs)
        of_tensors = all(isinstance(value, torch.Tensor) for value in takes)
        for placeholder, value in zip(module.graph.find_nodes(op="placeholder"), takes, strict=True):
            # Inductor for C++ believes "val", and not the inputs that it is given; of numbers it makes None.
            placeholder.meta = {"val" if of_tensors else "example_value": value}
        with torch.no_grad():
            crossings.settle(module, inputs, takes, outputs)
        crossings.promise(module, outputs)
        states = [node for node in inputs if numbers.returns_state(node, index)]
        _return_too(module, inputs, states)
        steps.append(
            Step(
                index=index,
                module=module,
                inputs=tuple(numbers.argument(node) for node in inputs),
                outputs=tuple(numbers.of[node] for node in (*outputs, *states)),
                dead=numbers.dead_after(index),
                takes=takes,
                makes=tuple(_detached(crossings.value(node)) for node in (*outputs, *states)),
                layouts=tuple(layout for _, layout in crossings.layouts((*outputs, *states))),
                writes=any(node.name in written for node in inputs),
            )
        )
    placeholders = captured.gm.graph.find_nodes(op="placeholder")
    return Program(
        steps=tuple(steps),
        num_values=len(numbers.of),
        inputs=tuple(numbers.of.get(node) for node in placeholders),
        results=tuple(_result(leaf, numbers) for leaf in leaves),
        results_tree=results_tree,
    )


class _Numbers:
    """The number of each value, and after which stage it is needed no more."""

    def __init__(
        self,
        captured: CapturedGraph,
        stubs: Sequence[PartitionGraph],
        leaves: Sequence[Any],
        told: set[torch.fx.Node],
        written: frozenset[str],
    ) -> None:
        self._weights = captured.weights
        self.of: dict[torch.fx.Node, int] = {}
        last: dict[torch.fx.Node, int] = {}
        for index, stub in enumerate(stubs):
            for node in (*stub.inputs, *stub.outputs):
                if node not in captured.weights and node not in told and not _is_constant(value_of(node)):
                    self.of.setdefault(node, len(self.of))
                    last[node] = index
        returned = {leaf for leaf in leaves if isinstance(leaf, torch.fx.Node)}
        for node in returned:
            if node.op == "placeholder" and node not in captured.weights:
                self.of.setdefault(node, len(self.of))
        # A weight that the graph writes and returns: as its last stage leaves it, for the next request writes it again.
        self._states: dict[torch.fx.Node, int] = {}
        for index, stub in enumerate(stubs):
            for node in stub.inputs:
                if node in captured.weights and node in returned and node.name in written:
                    self.of.setdefault(node, len(self.of))
                    self._states[node] = index
        self._dead: dict[int, list[int]] = {}
        for node, index in last.items():
            if node not in returned:
                self._dead.setdefault(index, []).append(self.of[node])

    def returns_state(self, node: torch.fx.Node, stage: int) -> bool:
        """Whether a stage returns one of its arguments, a state, for the graph."""
        return self._states.get(node) == stage

    def argument(self, node: torch.fx.Node) -> int | torch.Tensor:
        weight = self._weights.get(node)
        return self.of[node] if weight is None else weight.detach()

    def dead_after(self, stage: int) -> tuple[int, ...]:
        return tuple(self._dead.get(stage, ()))

    def result(self, node: torch.fx.Node) -> int | Constant:
        if node in self.of:
            return self.of[node]
        if node in self._weights:
            return Constant(self._weights[node])
        value = value_of(node)
        if _is_constant(value) or isinstance(value, torch.SymInt):
            return Constant(value)
        raise PartitionError(
            f"the graph returns {node.name}, which depends on weights alone; return it apart from the model's results"
        )


def _return_too(module: torch.fx.GraphModule, inputs: Sequence[torch.fx.Node], more: Sequence[torch.fx.Node]) -> None:
    """Let a stage return some of its arguments after its results."""
    if not more:
        return
    taken = dict(zip(inputs, module.graph.find_nodes(op="placeholder"), strict=True))
    output = next(iter(reversed(module.graph.nodes)))
    output.args = ((*output.args[0], *(taken[node] for node in more)),)
    module.recompile()


def _result(leaf: Any, numbers: _Numbers) -> int | Constant:
    return numbers.result(leaf) if isinstance(leaf, torch.fx.Node) else Constant(leaf)


def _is_constant(value: Any) -> bool:
    return not isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))


def _detached(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with torch.no_grad():
        return value.detach()
