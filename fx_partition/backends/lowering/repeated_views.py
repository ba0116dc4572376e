"""Repeat views of memory that a stage writes: the stage takes only their base, and makes the views itself.

AOTAutograd merges arguments that share memory where one of them is written. It then makes results that are views of
them from the wrong tensor: with a wrong shape, with an error, or as a copy. So such a stage takes the tensor that they
are views of, and none of the views::

    before                                              after
    def stage(x, select):                               def stage(x):
        zero_ = select.zero_()                              select = x.select(0, 0);  zero_ = select.zero_()
        transpose = select.transpose(0, -1)                 transpose = select.transpose(0, -1)
        return transpose, F.relu(x)                         return transpose, F.relu(x)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from dataclasses import replace

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.capture.fake_tensors import is_wrapped
from fx_partition.passes.capture.tensor_storage import storage_key
from fx_partition.passes.footprint.assumed_effects import works_in_place
from fx_partition.passes.split.extract import PartitionGraph


def repeat_views(partitions: list[PartitionGraph], returned: Collection[torch.fx.Node]) -> list[PartitionGraph]:
    """Return the partitions of a graph so that none has two arguments that share memory which it writes.

    A view that cannot be made in the partition stays an argument.

    Args:
        partitions: all partitions; their graphs are changed.
        returned: the nodes that the whole graph returns.
    """
    made = {node for partition in partitions for node in partition.outputs}
    repeated = [_repeat(partition, made) for partition in partitions]
    if all(new is old for new, old in zip(repeated, partitions, strict=True)):
        return partitions
    needed = {node for partition in repeated for node in partition.inputs} | {*returned}
    return [_return_only(partition, needed) for partition in repeated]


def _repeat(partition: PartitionGraph, made: Collection[torch.fx.Node]) -> PartitionGraph:
    graph = partition.module.graph
    shared = Counter(storage for node in partition.inputs for storage in _storages(node))
    operands = (source for node in graph.nodes if _may_write(node) for source in node.all_input_nodes)
    written = {storage for source in operands for storage in _storages(source) if shared[storage] > 1}
    if not written or any(_sets_grad_mode(node) for node in graph.nodes):
        return partition
    placeholders = dict(zip(partition.inputs, graph.find_nodes(op="placeholder"), strict=True))
    _add_bases(graph, placeholders, written, made)
    first = next(node for node in graph.nodes if node.op != "placeholder")
    kept, repeated = dict(placeholders), dict[torch.fx.Node, torch.fx.Node]()
    for node in sorted(n for n in placeholders if written & _storages(n)):  # what a view is made of comes first
        views = _views_between(node, (kept.keys() | repeated.keys()) - {node})
        if not views:
            continue
        with graph.inserting_before(first):
            for view in views:
                repeated[view] = graph.node_copy(view, lambda n: repeated[n] if n in repeated else kept[n])
        placeholder = kept.pop(node)
        placeholder.replace_all_uses_with(repeated[node])
        graph.erase_node(placeholder)
    partition.module.recompile()
    return replace(partition, inputs=tuple(kept))


def _add_bases(
    graph: torch.fx.Graph,
    placeholders: dict[torch.fx.Node, torch.fx.Node],
    written: Collection[Hashable],
    made: Collection[torch.fx.Node],
) -> None:
    """Let a partition take the base of its arguments, where the base is an input or a result of another partition."""
    for node in [node for node in placeholders if _storages(node) & {*written}]:
        base = _base(node)
        if base not in placeholders and (base.op == "placeholder" or base in made):
            with graph.inserting_after(next(reversed(placeholders.values()))):
                placeholders[base] = graph.placeholder(base.name, type_expr=base.type)
            placeholders[base].meta = dict(base.meta)


def _base(node: torch.fx.Node) -> torch.fx.Node:
    """Return the node that a node is a view of, through views of views."""
    while node.op.startswith("call_") and not _may_write(node):
        sources = [source for source in node.all_input_nodes if _storages(source) == _storages(node)]
        if not sources:
            break
        node = sources[0]
    return node


def _views_between(node: torch.fx.Node, taken: Collection[torch.fx.Node]) -> list[torch.fx.Node] | None:
    """Return the nodes that make a view from the arguments, in order; None where this is not possible."""
    storages, found, stack = _storages(node), dict[torch.fx.Node, None](), [node]
    while stack:
        view = stack.pop()
        if view in taken:
            continue
        of_that = all(any(_storages(n) == storages for n in nodes) for nodes in ([view], view.all_input_nodes))
        if not view.op.startswith("call_") or not of_that or _may_write(view) or any(map(is_wrapped, _tensors(view))):
            return None  # it allocates this memory, or writes it, or is in a region of vmap or grad
        found.pop(view, None)
        found[view] = None  # moved to the end, and so before its users in the reversed list
        stack += view.all_input_nodes
    return [*reversed(found)]


def _storages(node: torch.fx.Node) -> set[Hashable]:
    return {storage_key(tensor) for tensor in _tensors(node)}


def _tensors(node: torch.fx.Node) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value_of(node)) if isinstance(leaf, torch.Tensor)]


def _may_write(node: torch.fx.Node) -> bool:
    if node.op == "call_module":
        return True
    in_place = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
    return node.op.startswith("call_") and (in_place or works_in_place(node))


def _sets_grad_mode(node: torch.fx.Node) -> bool:
    """Return whether a node sets grad mode: views made at the beginning of the graph would be in another mode."""
    return getattr(node.target, "__name__", "") == "_set_grad_enabled"


def _return_only(partition: PartitionGraph, needed: Collection[torch.fx.Node]) -> PartitionGraph:
    """Return the partition without the results that are not needed any more."""
    outputs = tuple(node for node in partition.outputs if node in needed)
    if outputs == partition.outputs:
        return partition
    output = next(iter(reversed(partition.module.graph.nodes)))
    results: Iterator[torch.fx.Node] = iter(output.args[0])
    output.args = (tuple(r for r, node in zip(results, partition.outputs, strict=True) if node in needed),)
    partition.module.recompile()
    return replace(partition, outputs=outputs)
