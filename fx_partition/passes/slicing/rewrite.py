"""Rewrite nodes of a graph into slices that each read a part of a weight, by the recipes of `slicing.rules`.

Before: ``linear = F.linear(x, weight, bias)``
After ``Slicing("linear", "outputs", 2)``, as `slicing.writer` shows in full::

    linear_slice_0 = F.linear(x, weight[:4], bias[:4])
    linear_slice_1 = F.linear(x, weight[4:], bias[4:])
    linear = torch.cat([linear_slice_0, linear_slice_1], -1)

The node that joins the slices keeps the name of the sliced node, so ``keep_together`` and reports still find it.
Results equal the original's up to the order of summation; where the result's dtype is shorter than the sums inside a
product (bfloat16), each slice over inputs is rounded to it before the slices are added up. The narrowed weights are
views, so parameters and their gradients are the original's.

Planning, splitting, checking and simulating one captured graph all need its slices. They are written once: while the
captured graph lives, its last sliced graph is kept, and equal slicings of it are the same object.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from fx_partition.common.errors import PartitionError

from ..capture.autocast_regions import Regions
from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import fake_mode_of, has_hooks
from ..capture.module_members import hand_over, members
from ..footprint.analyze import analyze_memory
from ..footprint.graph_memory import GraphMemory
from .rules import Axis, Call, Recipe, Unsliceable, read_call
from .writer import SliceWriter

# Leaf modules that call one function on their own tensors: {type: (function, the arguments that the module holds)}.
_LEAVES: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {
    nn.Linear: (F.linear, ("weight", "bias")),
    nn.Embedding: (F.embedding, ("weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")),
    nn.Conv1d: (F.conv1d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    nn.Conv2d: (F.conv2d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    nn.Conv3d: (F.conv3d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
}


@dataclass(frozen=True)
class Slicing:
    """One node to slice: its name, the axis, the number of slices; plain data."""

    node: str
    axis: Axis
    parts: int


# By the id of a captured graph: its last slicings and the graph that has them. An entry dies with its captured graph.
_SLICED: dict[int, tuple[tuple[Slicing, ...], CapturedGraph]] = {}


def remember_sliced(captured: CapturedGraph, slicings: tuple[Slicing, ...], sliced: CapturedGraph) -> None:
    """Keep a sliced graph, so that `apply_slicings` returns it instead of writing the slices again."""
    if id(captured) not in _SLICED:
        weakref.finalize(captured, _SLICED.pop, id(captured), None).atexit = False
    _SLICED[id(captured)] = slicings, sliced


def apply_slicings(captured: CapturedGraph, slicings: Iterable[Slicing]) -> CapturedGraph:
    """Return the graph with some nodes in slices: a copy that shares the original's parameters and submodules.

    Nothing may write to it: equal slicings of one captured graph return the same object. Equal graphs and slicings
    give equal graphs, with the same fingerprint.

    Raises:
        PartitionError: a slicing names a node that does not exist or cannot be sliced like this; it says why.

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
    known, sliced = _SLICED.get(id(captured), ((), captured))
    if known == slicings:
        return sliced
    slicer = Slicer(captured, analyze_memory(captured))
    node = ""
    try:
        for slicing in slicings:
            node = slicing.node
            slicer.slice(slicing)
    except Unsliceable as error:
        raise PartitionError(f"{node} cannot be sliced: {error}") from error
    sliced = slicer.result()
    remember_sliced(captured, slicings, sliced)
    return sliced


class Slicer:
    """Writes slices into a copy of a graph.

    Args:
        captured: the original; neither its graph nor its module is changed.
        memory: as `analyze_memory` returns it for the original.
    """

    def __init__(self, captured: CapturedGraph, memory: GraphMemory) -> None:
        self._gm = captured.gm
        self._graph = copy.deepcopy(captured.gm.graph)  # with its codegen, which knows the pytrees
        twin = dict(zip(captured.gm.graph.nodes, self._graph.nodes, strict=True))
        self._values = {twin[node]: value for node, value in captured.values.items()}
        self._weights = {twin[node]: tensor for node, tensor in captured.weights.items()}
        self._captured = captured
        self._names = {twin[node]: name for node, name in captured.names.items()}
        self._nodes = {node.name: node for node in self._graph.nodes}
        self._steps = {step.node for step in memory.steps}
        written = memory.written
        self._written = {id(tensor) for node, tensor in self._weights.items() if node.name in written}
        self._mode = fake_mode_of(captured.values.values())
        self._sliced: set[str] = set()
        self._autocast: dict[torch.fx.Node, tuple[torch.fx.Node, ...]] = {}
        regions = Regions()
        for node in self._graph.nodes:
            self._autocast[node] = tuple(regions.open)
            regions.pass_node(node)

    def recipes(self, name: str) -> dict[Axis, Recipe]:
        """Return the recipes of the node of this name, the one to try first in front.

        Raises:
            PartitionError: there is no such node.
            Unsliceable: it has no recipe.
        """
        return self._read(name)[1]

    def why_not(self, name: str) -> str:
        """Return why the node of this name cannot be sliced, as the end of a sentence about it; "" if it can.

        Raises:
            PartitionError: there is no such node.
        """
        try:
            self.recipes(name)
        except Unsliceable as error:
            return str(error)
        return ""

    def slice(self, slicing: Slicing) -> tuple[str, ...]:
        """Replace one node by its slices; return the names of the slices and of the nodes that join them.

        Raises:
            PartitionError: there is no such node.
            Unsliceable: it cannot be sliced like this; the copy is then unusable.
        """
        if slicing.node in self._sliced:
            raise Unsliceable("it is in slices already")
        writer = self._writer(slicing)
        self._sliced.add(slicing.node)
        return writer.write(slicing.parts)

    def sample(self, slicing: Slicing) -> tuple[str, ...]:
        """Write one slice of each shape that a slicing has, keep the node, and return the names of the slices.

        Raises:
            PartitionError: there is no such node.
            Unsliceable: it cannot be sliced like this.
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
        """Return the copy, with all slices that were written into it."""
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
        """Return whether a node is a weight that the graph only reads, or a view of one that costs nothing."""
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
        """Replace a leaf module by the function that it calls."""
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
    """Return a module that runs ``graph`` with the parameters, buffers and children of ``gm``, in the same order."""
    result = torch.fx.GraphModule(gm, graph, class_name=type(gm).__name__)
    for name, _ in list(members(result)):
        delattr(result, name)
    hand_over(gm, result)
    result.meta = dict(gm.meta)
    return result
