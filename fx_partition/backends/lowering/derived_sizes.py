"""Derived sizes: a stage computes a size from the shapes of its tensors, so that the size need not cross a boundary.

Before (``rows`` is the size of ``x``)::

    stage 0: x -> relu, rows         stage 1: relu, rows -> rows * 2

After::

    stage 0: x -> relu               stage 1: relu -> sym_size(relu, 0) * 2

So stages take and return only tensors, and no Python is needed to pass numbers between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import sympy
import torch
import torch.fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.capture.symbolic_sizes import Size, to_expr
from fx_partition.passes.split.extract import PartitionGraph

from .graph_edits import write_in
from .size_nodes import Argument, write_size


def find_derived_sizes(partitions: Iterable[PartitionGraph]) -> set[torch.fx.Node]:
    """Return the sizes among the inputs and outputs of stages that every stage which takes them can derive.

    Sizes that the graph returns are among them: they follow from its inputs.
    """
    derived: set[torch.fx.Node] = set()
    others: set[torch.fx.Node] = set()
    for partition in partitions:
        places = _places(partition.inputs)
        derived.update(filter(_is_size, partition.outputs))
        for node in filter(_is_size, partition.inputs):
            (derived if _can_write(to_expr(value_of(node)), places) else others).add(node)
    return derived - others


def refuse_unreadable(index: int, inputs: Iterable[torch.fx.Node]) -> None:
    """Refuse a size that a stage takes and cannot solve: for ``2*s`` it needs another input whose size is ``s``.

    Raises:
        PartitionError: it names the size.
    """
    inputs = list(inputs)
    sizes = {node: to_expr(value_of(node)) for node in inputs if _is_size(node)}
    known = {*_places(inputs), *sizes.values()}
    for node, size in sizes.items():
        if not isinstance(size, int) and not size.free_symbols <= known:
            raise PartitionError(
                f"stage {index} takes the size {size} ({node.name}), and no other input of it has this size; keep "
                f"{node.name} and its users in one stage with keep_together="
            )


def write_derived_sizes(module: torch.fx.GraphModule, partition: PartitionGraph, derived: set[torch.fx.Node]) -> None:
    """Let a stage's copy of its graph compute the derived sizes, and no longer take or return them."""
    graph = module.graph
    taken = dict(zip(partition.inputs, graph.find_nodes(op="placeholder"), strict=True))
    output = next(iter(reversed(graph.nodes)))
    results = zip(partition.outputs, output.args[0], strict=True)
    output.args = (tuple(result for node, result in results if node not in derived),)
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        read = {
            size: graph.call_function(torch.ops.aten.sym_size.int, (taken[source], dim))
            for size, (source, dim) in _places(partition.inputs).items()
        }
        for node in filter(derived.__contains__, partition.inputs):
            write_in(graph, taken[node], _write(graph, to_expr(value_of(node)), read))
    for call in read.values():
        if not call.users:
            graph.erase_node(call)
    module.recompile()


def _is_size(node: torch.fx.Node) -> bool:
    """Return whether a node is a size that follows from the sizes of the graph's inputs, and not from data."""
    value = value_of(node)
    return isinstance(value, torch.SymInt) and not free_unbacked_symbols(value)


def _places(inputs: Sequence[torch.fx.Node]) -> dict[sympy.Expr, tuple[torch.fx.Node, int]]:
    """Return for each symbolic size a tensor and its dimension of that size."""
    found: dict[sympy.Expr, tuple[torch.fx.Node, int]] = {}
    for node in inputs:
        value = value_of(node)
        sizes = value.shape if isinstance(value, torch.Tensor) else ()
        for dim, size in enumerate(map(to_expr, sizes)):
            if not isinstance(size, int):
                found.setdefault(size, (node, dim))
    return found


def _can_write(size: Size, places: Iterable[sympy.Expr]) -> bool:
    scratch = torch.fx.Graph()
    try:
        _write(scratch, size, {place: scratch.placeholder("size") for place in places})
    except ValueError:
        return False
    return True


def _write(graph: torch.fx.Graph, size: Size, read: Mapping[sympy.Expr, torch.fx.Node]) -> Argument:
    if size in read:
        return read[size]
    return write_size(graph, size, {known.name: node for known, node in read.items() if known.is_Symbol})
