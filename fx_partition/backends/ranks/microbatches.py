"""Run a call on ranks in microbatches: while one rank runs a microbatch, the next rank runs the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
import torch.fx

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.symbolic_sizes import to_expr
from fx_partition.passes.footprint.graph_memory import GraphMemory

from ..microbatch.batch_slices import BatchSlices
from ..microbatch.microbatch_plan import MicrobatchGraph


class Microbatches:
    """Splits the inputs of a call into microbatches, and joins their results.

    Args:
        graph: the planned graph with the values of the trace, and with those of a microbatch.
        guards: what any rank's stages assume of their sizes.
    """

    def __init__(self, graph: MicrobatchGraph, guards: Sequence[sympy.Basic]) -> None:
        captured, traced, separation = graph.captured, graph.traced, graph.plan.separation
        self._sizes = list(captured.symbol_inputs.values())
        self._splitter = graph.splitter(guards)
        batch, values = graph.batch, captured.values
        self._batch = [node for node in self._sizes if to_expr(values[node]) in batch]
        self._batched: dict[torch.fx.Node, BatchSlices] = {}
        for node in captured.gm.graph.find_nodes(op="placeholder"):
            if (dim := separation.inputs.get(node.name)) is not None:
                name = captured.names.get(node, node.name)
                self._batched[node] = BatchSlices.of_input(values[node], dim, batch, name, written=False)
        (output,) = traced.gm.graph.find_nodes(op="output")
        pairs = zip(output.args[0], separation.outputs, strict=True)
        self._joined = [None if dim is None else BatchSlices.of_result(traced.values[leaf], dim) for leaf, dim in pairs]

    def split(self, table: Mapping[torch.fx.Node, Any], *, inputs: bool) -> list[dict[torch.fx.Node, Any]]:
        """Return the values of each microbatch.

        Args:
            table: the values of the call, with the sizes of rank 0's inputs.
            inputs: whether ``table`` has the tensors of the inputs, as on rank 0.

        Raises:
            ValueError: the stages were compiled for other sizes; raised on every rank.
        """
        sizes = [table[node] for node in self._sizes]
        blocks = self._splitter(*sizes)
        if not blocks:
            raise ValueError(f"inputs of the sizes {sizes} cannot be split into microbatches that the stages accept")
        tables = []
        for first, count in blocks:
            own = {node: rows.take(table[node], first, count) for node, rows in self._batched.items()} if inputs else {}
            tables.append({**table, **own, **dict.fromkeys(self._batch, count)})
        return tables

    def join(self, leaves: Sequence[Any], tables: Sequence[Mapping[Any, Any]], whole: Mapping[Any, Any]) -> list[Any]:
        """Return the results of the call. ``leaves`` are nodes of the graph or constants; ``whole`` has the inputs."""
        return [
            rows.join([table[leaf] for table in tables]) if rows else whole.get(leaf, tables[0].get(leaf, leaf))
            for leaf, rows in zip(leaves, self._joined, strict=True)
        ]


def refuse_writes(memory: GraphMemory) -> None:
    """Refuse a graph that writes its inputs: several ranks would have to write the microbatches back.

    Raises:
        PartitionError: the graph writes an input.
    """
    if memory.written:
        raise PartitionError(
            f"the graph writes {', '.join(sorted(memory.written))} in place, which microbatches on ranks do not "
            "support; set microbatches=1"
        )
