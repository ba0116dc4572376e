"""The graph of each stage, and the tensors that it receives and sends.

A stage receives only from the stage before it, so the stages in between relay what a later stage needs. Before, stage 2
uses the input ``mask`` and ``skip``, which stage 0 computes::

    stage 0: (x, mask) -> skip, a      stage 1: a -> b      stage 2: (b, skip, mask) -> result

After, where ``relay`` marks a tensor that a stage only passes on::

    stage 0: receives (x, mask),    sends (relay mask, skip, a)
    stage 1: receives (mask, skip, a), sends (relay mask, relay skip, b)
    stage 2: receives (mask, skip, b), sends (result,)

Weights, which are inputs of a partition, become attributes of the stage. Numbers that would cross become constants,
with the sizes of the example.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.module_members import all_tensors
from fx_partition.passes.capture.symbolic_sizes import Size, evaluate, numbers_of, to_expr
from fx_partition.passes.split.extract import PartitionGraph

from ..lowering.graph_edits import retarget, retarget_graph, write_in


@dataclass(frozen=True)
class SentTensor:
    """A tensor that a stage sends: number ``index`` of those that its code computes, or of those that it received."""

    is_relay: bool
    index: int


@dataclass(frozen=True)
class StageGraph:
    """The graph of one stage, over the model's own weights.

    Attributes:
        index: the number of the stage.
        graph: its code: a placeholder for each of ``uses``, a ``get_attr`` for each weight; it returns a tuple.
        uses: for each placeholder, the position of its tensor among those received.
        sends: the tensors that the stage sends; the last stage returns them.
        weights: the tensors of its ``get_attr`` nodes by their names in the model.
        modules: leaf modules and bodies of higher-order operators by name.
    """

    index: int
    graph: torch.fx.Graph
    uses: tuple[int, ...]
    sends: tuple[SentTensor, ...]
    weights: Mapping[str, torch.Tensor]
    modules: Mapping[str, nn.Module]

    def moved(self, home: torch.device, device: torch.device) -> StageGraph:
        """Return the same stage for a run on another device than the model's."""
        graph = copy.deepcopy(self.graph)
        retarget_graph(graph, home, device)
        modules = dict(self.modules)
        for name, module in modules.items():
            if isinstance(module, torch.fx.GraphModule):
                memo = {id(tensor): tensor for tensor in all_tensors(module).values()}
                modules[name] = body = copy.deepcopy(module, memo)
                retarget(body, home, device)
        return replace(self, graph=graph, modules=modules)


def stage_graphs(
    captured: CapturedGraph, partitions: Sequence[PartitionGraph], leaves: Sequence[Any]
) -> list[StageGraph]:
    """Return the stages of a split graph.

    Args:
        captured: the graph.
        partitions: its partitions, from `extract.cut`.
        leaves: the example of each input of the graph, in order.

    Raises:
        PartitionError: a value crosses a boundary that is neither a tensor nor a number known before the run, or the
            graph returns a value that no stage computes; the message names the value.
    """
    placeholders = captured.gm.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(leaves):
        raise PartitionError(
            f"the model takes {len(placeholders)} inputs, and example_inputs has {len(leaves)}; give all of them"
        )
    inputs = [node for node, leaf in zip(placeholders, leaves, strict=True) if isinstance(leaf, torch.Tensor)]
    numbers = _KnownNumbers(captured, dict(zip(placeholders, leaves, strict=True)))
    results = _results(captured)
    made = {node: index for index, partition in enumerate(partitions) for node in partition.outputs}
    made |= dict.fromkeys(inputs, 0)
    needed = {node: index for index, partition in enumerate(partitions) for node in partition.inputs if node in made}
    for node in results:
        if node not in made:
            raise PartitionError(
                f"the model returns {node.name}, which is not a tensor or is computed from weights alone; let it "
                "return tensors that are computed from its inputs"
            )
        needed[node] = len(partitions) - 1
    crossing = [node for node in captured.gm.graph.nodes if node in needed and numbers.is_tensor(node)]
    found = []
    received: Sequence[torch.fx.Node] = inputs
    for index, partition in enumerate(partitions):
        is_last = index == len(partitions) - 1
        sent = results if is_last else [n for n in crossing if made[n] <= index < needed[n]]
        found.append(_stage_graph(captured, index, partition, received, sent, numbers))
        received = sent
    return found


def _read_weight(
    captured: CapturedGraph, graph: torch.fx.Graph, node: torch.fx.Node, name: str, weights: dict[str, torch.Tensor]
) -> torch.fx.Node:
    """Write the node that reads a weight under its name in the model, and add the weight to ``weights``.

    An inner tensor of a subclass has no name in the model: the stage holds the subclass and takes it out of that.
    """
    if node.op == "call_function":
        source, inner = node.args
        assert isinstance(source, torch.fx.Node)
        read = _read_weight(captured, graph, source, source.name, weights)
        return graph.create_node("call_function", node.target, (read, inner), name=name)
    path = captured.names[node]
    held = captured.weights.get(node)
    weights[path] = operator.attrgetter(str(node.target))(captured.gm) if held is None else held
    return graph.create_node("get_attr", path, name=name)


def _results(captured: CapturedGraph) -> list[torch.fx.Node]:
    """Return the tensors among the graph's results, in order."""
    output = next(iter(reversed(captured.gm.graph.nodes)))
    leaves = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, torch.fx.Node)]
    found = [leaf for leaf in leaves if isinstance(captured.values.get(leaf), torch.Tensor)]
    if not found:
        raise PartitionError("the model returns no tensor, so no loss can be computed; let it return a tensor")
    return found


def _stage_graph(
    captured: CapturedGraph,
    index: int,
    partition: PartitionGraph,
    received: Sequence[torch.fx.Node],
    sent: Sequence[torch.fx.Node],
    numbers: _KnownNumbers,
) -> StageGraph:
    graph = copy.deepcopy(partition.module.graph)
    weights: dict[str, torch.Tensor] = {}
    uses = []
    for node, placeholder in zip(partition.inputs, graph.find_nodes(op="placeholder"), strict=True):
        if node in captured.weights:
            with graph.inserting_before(placeholder):
                holder = _read_weight(captured, graph, node, placeholder.name, weights)
            placeholder.replace_all_uses_with(holder)
            graph.erase_node(placeholder)
        elif numbers.is_tensor(node):
            uses.append(received.index(node))
        else:
            write_in(graph, placeholder, numbers[node])
    sources = {node: SentTensor(False, i) for i, node in enumerate(partition.outputs)}
    sources |= {node: SentTensor(True, i) for i, node in enumerate(received)}
    modules = {
        str(node.target): partition.module.get_submodule(str(node.target))
        for node in partition.module.graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    return StageGraph(index, graph, tuple(uses), tuple(sources[node] for node in sent), weights, modules)


class _KnownNumbers:
    """The values that are not tensors: constants, and sizes for the example."""

    def __init__(self, captured: CapturedGraph, examples: Mapping[torch.fx.Node, Any]) -> None:
        self._values, self._examples = captured.values, examples
        sizes: list[tuple[Size, int]] = []
        for node, example in examples.items():
            value = captured.values.get(node)
            if isinstance(value, torch.Tensor) and isinstance(example, torch.Tensor):
                sizes += zip(map(to_expr, value.shape), example.shape, strict=False)
            elif isinstance(value, torch.SymInt):
                sizes.append((to_expr(value), example))
        self._symbols = numbers_of(sizes)

    def is_tensor(self, node: torch.fx.Node) -> bool:
        return isinstance(self._examples.get(node, self._values.get(node)), torch.Tensor)

    def __getitem__(self, node: torch.fx.Node) -> Any:
        if node in self._examples:
            return self._examples[node]
        value = self._values.get(node)
        if isinstance(value, torch.SymInt):
            expr = to_expr(value)
            if isinstance(expr, int) or expr.free_symbols <= self._symbols.keys():
                return evaluate(expr, self._symbols)
        elif isinstance(value, (bool, int, float)):
            return value
        raise PartitionError(
            f"{node.name} crosses a boundary and is a number that is known only when the model runs; keep the operator "
            "that computes it and its users in one stage with keep_together="
        )
