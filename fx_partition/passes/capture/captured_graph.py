"""A graph with all that the passes need to know of it; `capture_model` makes one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
import torch.fx

from .fake_tensors import symbols_in
from .module_members import hand_over


@dataclass(frozen=True)
class CapturedGraph:
    """A graph with all that the passes need to know of it.

    Attributes:
        gm: the graph module; nothing writes to it.
        values: the fake value of each node that has one.
        weights: the tensor of each node (``get_attr`` or placeholder) that holds a weight.
        names: the user's name of each input and weight: ``"input_ids"``, ``"layers.0.weight"``.
        is_specialized: whether a tracer wrote the sizes of its example into the graph.
        example_numbers: numbers from the example inputs, for symbols to which the tracer gave none (see
            `graph_symbols`).
    """

    gm: torch.fx.GraphModule
    values: Mapping[torch.fx.Node, Any]
    weights: Mapping[torch.fx.Node, torch.Tensor]
    names: Mapping[torch.fx.Node, str]
    is_specialized: bool = True
    example_numbers: Mapping[sympy.Symbol, int] = field(default_factory=dict)

    @property
    def dims(self) -> dict[str, torch.SymInt]:
        """Return the symbolic sizes of the inputs by the names that a user knows: ``{"input_ids.1": s33}``."""
        found: dict[str, torch.SymInt] = {}
        for node, value in self.values.items():
            if node.op == "placeholder" and node in self.names and isinstance(value, torch.Tensor):
                sizes: tuple[Any, ...] = tuple(value.shape)
                found |= {f"{self.names[node]}.{i}": s for i, s in enumerate(sizes) if isinstance(s, torch.SymInt)}
        return found

    @property
    def symbol_inputs(self) -> dict[str, torch.fx.Node]:
        """Return the placeholder of each symbol by its name; Dynamo passes sizes as inputs, torch.export does not."""
        inputs = {n: v for n, v in self.values.items() if n.op == "placeholder" and isinstance(v, torch.SymInt)}
        return {v.node.expr.name: n for n, v in inputs.items() if symbols_in(v) == {v.node.expr}}


def value_of(node: torch.fx.Node) -> Any:
    """Return the fake value that a tracer left on a node, or None."""
    return node.meta.get("val", node.meta.get("example_value"))


def annotated(captured: CapturedGraph) -> CapturedGraph:
    """Return a copy with each value on its node, where compilers look for it; the graph itself if it has them.

    Example: a graph of ``torch.fx.symbolic_trace``, whose values were found by running it on fake tensors, becomes a
    copy whose nodes have ``meta["example_value"]``.
    """
    if all(value_of(node) is not None for node, value in captured.values.items() if value is not None):
        return captured
    return with_values(captured, captured.values)


def with_values(captured: CapturedGraph, values: Mapping[torch.fx.Node, Any]) -> CapturedGraph:
    """Return a copy of a graph whose nodes carry other values; weights and submodules are shared.

    Args:
        values: a value for each node of ``captured.values``; values of other nodes are ignored.
    """
    graph = copy.deepcopy(captured.gm.graph)  # copies its codegen too, which knows the pytrees
    twin = dict(zip(captured.gm.graph.nodes, graph.nodes, strict=True))
    found = {twin[node]: values[node] for node in captured.values}
    for node, value in found.items():
        node.meta.pop("val", None)
        node.meta["example_value"] = value
    gm = torch.fx.GraphModule(captured.gm, graph)
    hand_over(captured.gm, gm)  # GraphModule leaves out what the graph does not read
    gm.meta = dict(captured.gm.meta)
    weights = {twin[node]: weight for node, weight in captured.weights.items()}
    names = {twin[node]: name for node, name in captured.names.items()}
    return replace(captured, gm=gm, values=found, weights=weights, names=names)
