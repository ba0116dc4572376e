"""A call in microbatches on ranks: while one rank runs a microbatch, the next rank runs the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
import torch.fx

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.capture_model import CapturedGraph
from fx_partition.passes.capture.respecialize import Refaked
from fx_partition.passes.capture.symbolic_sizes import to_expr
from fx_partition.passes.footprint.graph_memory import GraphMemory

from ..microbatch.batch_slices import BatchSlices
from ..microbatch.cutting import MicrobatchPlan


class Microbatches:
    """Cuts a call's values into those of microbatches, and joins results.

    Args:
        cutting: how the batch is cut.
        traced: the planned graph with the values of the trace.
        made: the same with those of a microbatch; the stages are cut from it.
        guards: what any rank's stages assume of their sizes.
    """

    def __init__(
        self, cutting: MicrobatchPlan, traced: CapturedGraph, made: Refaked, guards: Sequence[sympy.Basic]
    ) -> None:
        graph, separation, batch = made.captured.gm.graph, cutting.separation, cutting.batch(made)
        self._sizes = list(made.captured.symbol_inputs.values())
        self._cutter = cutting.cutter(traced, made, guards)
        values = made.captured.values
        self._batch = [node for node in self._sizes if to_expr(values[node]) in batch]
        self._cut: dict[torch.fx.Node, BatchSlices] = {}
        for node in graph.find_nodes(op="placeholder"):
            if (dim := separation.inputs.get(node.name)) is not None:
                name = made.captured.names.get(node, node.name)
                self._cut[node] = BatchSlices.of_input(values[node], dim, batch, name, written=False)
        (output,) = traced.gm.graph.find_nodes(op="output")
        pairs = zip(output.args[0], separation.outputs, strict=True)
        self._joined = [None if dim is None else BatchSlices.of_result(traced.values[leaf], dim) for leaf, dim in pairs]

    def cut(self, table: Mapping[torch.fx.Node, Any], *, inputs: bool) -> list[dict[torch.fx.Node, Any]]:
        """The values of each microbatch.

        Args:
            table: those of the call, with the sizes of rank 0's inputs.
            inputs: whether the inputs in it are real: those of rank 0.

        Raises:
            ValueError: the stages were compiled for other sizes; on every rank alike.
        """
        sizes = [table[node] for node in self._sizes]
        blocks = self._cutter(*sizes)
        if not blocks:
            raise ValueError(f"no microbatches of inputs of the sizes {sizes} are such as the stages were compiled for")
        tables = []
        for first, count in blocks:
            own = {node: rows.take(table[node], first, count) for node, rows in self._cut.items()} if inputs else {}
            tables.append({**table, **own, **dict.fromkeys(self._batch, count)})
        return tables

    def join(self, leaves: Sequence[Any], tables: Sequence[Mapping[Any, Any]], whole: Mapping[Any, Any]) -> list[Any]:
        """The results of the call; ``leaves`` are nodes of the graph, or constants, and ``whole`` has its inputs."""
        return [
            rows.join([table[leaf] for table in tables]) if rows else whole.get(leaf, tables[0].get(leaf, leaf))
            for leaf, rows in zip(leaves, self._joined, strict=True)
        ]


def refuse_writes(facts: GraphMemory) -> None:
    """Microbatches of a graph that writes its inputs would have to be written back from several ranks.

    Raises:
        PartitionError: it writes some.
    """
    if facts.written:
        raise PartitionError(
            f"the graph writes {', '.join(sorted(facts.written))}, and microbatches on ranks are for graphs that write "
            "nothing; set microbatches=1"
        )
