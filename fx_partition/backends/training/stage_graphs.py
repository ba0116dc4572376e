"""The graph of each stage, and what it receives and sends on.

A stage receives from the stage before it alone, so what a later stage needs is relayed by all stages between. Before,
stage 2 uses the input ``mask`` and ``skip``, which stage 0 makes::

    stage 0: (x, mask) -> skip, a      stage 1: a -> b      stage 2: (b, skip, mask) -> result

After, with ``relay`` for what passes by the code of a stage::

    stage 0: receives (x, mask),    sends (relay mask, skip, a)
    stage 1: receives (mask, skip, a), sends (relay mask, relay skip, b)
    stage 2: receives (mask, skip, b), sends (result,)

Weights, inputs of a partition before, are attributes of the stage. Numbers that would cross are written in: sizes are
those of the example.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.capture_model import CapturedGraph
from fx_partition.passes.capture.module_members import all_tensors
from fx_partition.passes.capture.symbolic_sizes import Size, evaluate, numbers_of, to_expr
from fx_partition.passes.split.extract import PartitionGraph

from ..lowering.graph_edits import retarget, retarget_graph, write_in


@dataclass(frozen=True)
class Slot:
    """One tensor that a stage sends: number ``index`` of what its code makes, or of what it has received."""

    is_relay: bool
    index: int


@dataclass(frozen=True)
class StageGraph:
    """One stage before it has weights of its own.

    Attributes:
        index: which stage.
        graph: its code: a placeholder for each of ``uses``, a ``get_attr`` for each weight; it returns a tuple.
        uses: for each placeholder the number of what it is among the tensors received.
        sends: what the stage sends on, or returns if it is the last.
        weights: the tensors of its ``get_attr`` nodes by the names that the model has for them.
        modules: leaf modules and bodies of higher-order operators by name.
    """

    index: int
    graph: torch.fx.Graph
    uses: tuple[int, ...]
    sends: tuple[Slot, ...]
    weights: Mapping[str, torch.Tensor]
    modules: Mapping[str, nn.Module]

    def moved(self, home: torch.device, device: torch.device) -> StageGraph:
        """The same stage, running on another device than the model's."""
        graph = copy.deepcopy(self.graph)
        retarget_graph(graph, home, device)
        modules = dict(self.modules)
        for name, module in modules.items():
            if isinstance(module, torch.fx.GraphModule):
                memo = {id(tensor): tensor for tensor in all_tensors(module).values()}
                modules[name] = body = copy.deepcopy(module, memo)
                retarget(body, home, device)
        return replace(self, graph=graph, modules=modules)


def stage_graphs(captured: CapturedGraph, stubs: Sequence[PartitionGraph], leaves: Sequence[Any]) -> list[StageGraph]:
    """The stages of a cut graph.

    Args:
        captured, stubs: as `extract.cut` gives them.
        leaves: the example of each input of the graph, in order.

    Raises:
        PartitionError: a value crosses that is neither a tensor nor a number known before, or the graph returns what
            no stage makes; it names the value.
    """
    placeholders = captured.gm.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(leaves):
        raise PartitionError(
            f"the model takes {len(placeholders)} inputs, and example_inputs has {len(leaves)}: give all of them"
        )
    inputs = [node for node, leaf in zip(placeholders, leaves, strict=True) if isinstance(leaf, torch.Tensor)]
    numbers = _Numbers(captured, dict(zip(placeholders, leaves, strict=True)))
    results = _results(captured)
    made = {node: index for index, stub in enumerate(stubs) for node in stub.outputs}
    made |= dict.fromkeys(inputs, 0)
    needed = {node: index for index, stub in enumerate(stubs) for node in stub.inputs if node in made}
    for node in results:
        if node not in made:
            raise PartitionError(
                f"the model returns {node.name}, which depends on weights alone or is no tensor; let it return what is "
                "computed from its inputs"
            )
        needed[node] = len(stubs) - 1
    crossing = [node for node in captured.gm.graph.nodes if node in needed and numbers.is_tensor(node)]
    found = []
    received: Sequence[torch.fx.Node] = inputs
    for index, stub in enumerate(stubs):
        is_last = index == len(stubs) - 1
        sent = results if is_last else [n for n in crossing if made[n] <= index < needed[n]]
        found.append(_stage_graph(captured, index, stub, received, sent, numbers))
        received = sent
    return found


def _results(captured: CapturedGraph) -> list[torch.fx.Node]:
    """The tensors that the graph returns, in order, without what is no tensor."""
    output = next(iter(reversed(captured.gm.graph.nodes)))
    leaves = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, torch.fx.Node)]
    found = [leaf for leaf in leaves if isinstance(captured.values.get(leaf), torch.Tensor)]
    if not found:
        raise PartitionError("the model returns no tensor, so there is nothing that a loss could be computed of")
    return found


def _stage_graph(
    captured: CapturedGraph,
    index: int,
    stub: PartitionGraph,
    received: Sequence[torch.fx.Node],
    sent: Sequence[torch.fx.Node],
    numbers: _Numbers,
) -> StageGraph:
    graph = copy.deepcopy(stub.module.graph)
    weights: dict[str, torch.Tensor] = {}
    uses = []
    for node, placeholder in zip(stub.inputs, graph.find_nodes(op="placeholder"), strict=True):
        if node in captured.weights:
            name = captured.names[node]
            weights[name] = captured.weights[node]
            with graph.inserting_before(placeholder):
                holder = graph.create_node("get_attr", name, name=placeholder.name)
            placeholder.replace_all_uses_with(holder)
            graph.erase_node(placeholder)
        elif numbers.is_tensor(node):
            uses.append(received.index(node))
        else:
            write_in(graph, placeholder, numbers[node])
    place = {node: Slot(False, i) for i, node in enumerate(stub.outputs)}
    place |= {node: Slot(True, i) for i, node in enumerate(received)}
    modules = {
        str(node.target): stub.module.get_submodule(str(node.target))
        for node in stub.module.graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    return StageGraph(index, graph, tuple(uses), tuple(place[node] for node in sent), weights, modules)


class _Numbers:
    """What each value is that is no tensor: a constant, or a size at the example's sizes."""

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
            f"{node.name} crosses a boundary and is no tensor, and its value is known only when the model runs; "
            "keep what makes it and what uses it in one stage with keep_together="
        )
