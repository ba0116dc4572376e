"""Rewrite nodes of a graph into slices that each read a part of a weight; `slicing.rules` says how.

Before: ``linear = F.linear(x, weight, bias)``
After ``Slicing("linear", "outputs", 2)``, as `slicing.writer` shows in full::

    linear_slice_0 = F.linear(x, weight[:4], bias[:4])
    linear_slice_1 = F.linear(x, weight[4:], bias[4:])
    linear = torch.cat([linear_slice_0, linear_slice_1], -1)

The node that joins the slices keeps the name of the node that was sliced, and with it its place in ``keep_together``
and in reports. Results are those of the original up to the order of summation; where the result's dtype is shorter
than the sums inside a product (bfloat16), slices over inputs are each rounded to it before they are added up. The
narrowed weights are views, so parameters and their gradients are the original's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from fx_partition.common.errors import PartitionError

from ..capture.autocast_regions import Regions
from ..capture.capture_model import CapturedGraph
from ..capture.fake_tensors import fake_mode_of, has_hooks
from ..capture.module_members import hand_over, members
from ..footprint.analyze import gather_facts
from ..footprint.graph_memory import GraphMemory
from .rules import Axis, Call, Recipe, Unsliceable, read_call
from .writer import SliceWriter

# Leaf modules that are one call of a function on their own tensors: {type: (function, its arguments from the module)}.
_LEAVES: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {
    nn.Linear: (F.linear, ("weight", "bias")),
    nn.Embedding: (F.embedding, ("weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")),
    nn.Conv1d: (F.conv1d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    nn.Conv2d: (F.conv2d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    nn.Conv3d: (F.conv3d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
}


@dataclass(frozen=True)
class Slicing:
    """One node to slice: its name, along which axis, into how many slices; plain data."""

    node: str
    axis: Axis
    parts: int


def apply_slicings(captured: CapturedGraph, slicings: Iterable[Slicing]) -> CapturedGraph:
    """The graph with some nodes in slices: a copy that shares the original's parameters and submodules.

    Equal graphs and slicings give equal graphs, with one fingerprint.

    Raises:
        PartitionError: a slicing names no node, or one that cannot be sliced so; the message says why.

    Example::

        >>> from fx_partition.passes.capture.capture_model import capture
        >>> captured = capture(torch.nn.Linear(4, 8), torch.randn(2, 4))
        >>> sliced = apply_slicings(captured, [Slicing("linear", "outputs", 2)])
        >>> sum(node.target is torch.ops.aten.linear.default for node in sliced.gm.graph.nodes)
        2
    """
    slicings = tuple(slicings)
    if not slicings:
        return captured
    slicer = Slicer(captured, gather_facts(captured))
    node = ""
    try:
        for slicing in slicings:
            node = slicing.node
            slicer.slice(slicing)
    except Unsliceable as error:
        raise PartitionError(f"{node} cannot be sliced: {error}") from error
    return slicer.result()


def why_not_sliced(captured: CapturedGraph, facts: GraphMemory, node: str) -> str:
    """Why the node of this name has no slices, as the end of a sentence about it; "" if it has.

    Raises:
        PartitionError: there is no such node.
    """
    return Slicer(captured, facts).why_not(node)


class Slicer:
    """Writes slices into a copy of a graph.

    Args:
        captured: the original; neither its graph nor its module is changed.
        facts: what `gather_facts` says of it.
    """

    def __init__(self, captured: CapturedGraph, facts: GraphMemory) -> None:
        self._gm = captured.gm
        self._graph = copy.deepcopy(captured.gm.graph)  # with its codegen, which knows the pytrees
        twin = dict(zip(captured.gm.graph.nodes, self._graph.nodes, strict=True))
        self._values = {twin[node]: value for node, value in captured.values.items()}
        self._weights = {twin[node]: tensor for node, tensor in captured.weights.items()}
        self._captured = captured
        self._names = {twin[node]: name for node, name in captured.names.items()}
        self._nodes = {node.name: node for node in self._graph.nodes}
        self._steps = {step.node for step in facts.steps}
        written = facts.written
        self._written = {id(tensor) for node, tensor in self._weights.items() if node.name in written}
        self._mode = fake_mode_of(captured.values.values())
        self._sliced: set[str] = set()
        self._autocast: dict[torch.fx.Node, tuple[torch.fx.Node, ...]] = {}
        regions = Regions()
        for node in self._graph.nodes:
            self._autocast[node] = tuple(regions.open)
            regions.pass_node(node)

    def recipes(self, name: str) -> dict[Axis, Recipe]:
        """How the node of this name can be sliced, the recipe to try first in front.

        Raises:
            PartitionError: there is no such node.
            Unsliceable: it has no recipe.
        """
        return self._read(name)[1]

    def why_not(self, name: str) -> str:
        """Why the node of this name has no slices, "" if it has; errors as for `recipes`."""
        try:
            self.recipes(name)
        except Unsliceable as error:
            return str(error)
        return ""

    def slice(self, slicing: Slicing) -> tuple[str, ...]:
        """Write the slices of one node in its place; returns the names of the slices and of what joins them.

        Raises:
            PartitionError: there is no such node.
            Unsliceable: it cannot be sliced so; the copy is then of no use.
        """
        if slicing.node in self._sliced:
            raise Unsliceable("it is in slices already")
        writer = self._writer(slicing)
        self._sliced.add(slicing.node)
        return writer.write(slicing.parts)

    def sample(self, slicing: Slicing) -> tuple[str, ...]:
        """Write slices of the shapes that a slicing has and leave the node; returns their names.

        Raises:
            PartitionError: there is no such node.
            Unsliceable: it cannot be sliced so.
        """
        return self._writer(slicing).sample(slicing.parts)

    def _writer(self, slicing: Slicing) -> SliceWriter:
        call, recipes = self._read(slicing.node)
        recipe = recipes.get(slicing.axis)
        if recipe is None:
            raise Unsliceable(f"it has slices over {', '.join(recipes)} only")
        if not 2 <= slicing.parts <= recipe.units:
            raise Unsliceable(f"it can have 2 to {recipe.units} slices over {slicing.axis}, not {slicing.parts}")
        return SliceWriter(self._graph, self._values, self._mode, self._autocast[call.node], call, recipe)

    def result(self) -> CapturedGraph:
        self._graph.lint()
        module = _module(self._gm, self._graph)
        return replace(self._captured, gm=module, values=self._values, weights=self._weights, names=self._names)

    def _read(self, name: str) -> tuple[Call, dict[Axis, Recipe]]:
        node = self._nodes.get(name)
        if node is None:
            raise PartitionError(f"a slicing names {name}: no such node in the graph")
        if node.op == "call_module":
            self._open_module(node)
        return read_call(node, self._values, self._is_weight)

    def _is_weight(self, node: torch.fx.Node) -> bool:
        """Whether a node is a weight that the graph only reads, or a free view of one."""
        if node not in self._weights and (not node.op.startswith("call_") or node.name in self._steps):
            return False
        stack, seen = [node], {node}
        while stack:
            source = stack.pop()
            if id(self._weights.get(source)) in self._written:
                raise Unsliceable(f"the graph writes {self._names[source]}")
            fresh = [other for other in source.all_input_nodes if other not in seen]
            seen.update(fresh)
            stack += fresh
        return True

    def _open_module(self, node: torch.fx.Node) -> None:
        """Write a leaf module as the function that it calls."""
        module = self._gm.get_submodule(str(node.target))
        found = _LEAVES.get(type(module))
        if found is None:
            raise Unsliceable(f"no rule says how to slice a {type(module).__name__}")
        if has_hooks(module):
            raise Unsliceable("its module has hooks")
        if getattr(module, "padding_mode", "zeros") != "zeros":
            raise Unsliceable(f"it pads with {module.padding_mode}")
        function, names = found
        kwargs = {name: getattr(module, name) for name in names}
        path = str(node.target)
        with self._graph.inserting_before(node):
            for name, tensor in kwargs.items():
                if isinstance(tensor, torch.Tensor):
                    holder = self._graph.create_node("get_attr", f"{path}.{name}", name=f"{node.name}_{name}")
                    self._weights[holder] = self._values[holder] = tensor
                    self._names[holder] = f"{path}.{name}"
                    kwargs[name] = holder
        node.op, node.target, node.kwargs = "call_function", function, kwargs | node.kwargs


def _module(gm: torch.fx.GraphModule, graph: torch.fx.Graph) -> torch.fx.GraphModule:
    """A module that runs ``graph`` with the very parameters, buffers and children of ``gm``, in their order."""
    result = torch.fx.GraphModule(gm, graph, class_name=type(gm).__name__)
    for name, _ in list(members(result)):
        delattr(result, name)
    hand_over(gm, result)
    result.meta = dict(gm.meta)
    return result
