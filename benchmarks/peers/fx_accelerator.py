"""torch.fx.experimental.accelerator_partitioner: sizes of nodes from ShapeProp, size_based, the smallest N that runs.

It packs nodes in graph order by weights + outputs into N devices of the budget, then single nodes into what is left,
so a partition need not be contiguous. It reads one ``tensor_meta`` a node and raises where there is none: unused inputs
and asserts, which have none, are taken out of its copy of the graph; operators of several outputs stay.
"""

from __future__ import annotations

import contextlib
import io

import torch
import torch.fx
from torch.fx.passes.shape_prop import ShapeProp

from .case import Case, NoPlan, Planned, timed
from .graphs import copied, example_inputs

MOST_DEVICES = 64
# What it says when there are too few devices; anything else is another error.
REFUSALS = ("enough memory", "too large to fit", "Valid Partition")


def plan(case: Case, budget: int) -> Planned:
    from torch.fx.experimental.accelerator_partitioner import Partitioner
    from torch.fx.experimental.partitioner_utils import Device, PartitionerConfig, PartitionMode

    gm = copied(case.gm)
    with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():  # it prints what it also raises
        ShapeProp(gm).propagate(*example_inputs(case.graph))
    _drop_what_has_no_tensor(gm.graph)

    def search(gm: torch.fx.GraphModule) -> dict[str, int]:
        refusal = ""
        for n in range(1, MOST_DEVICES + 1):
            devices = [Device(f"device_{i}", budget, i) for i in range(n)]
            partitioner = Partitioner()
            try:
                partitioner.partition_graph(gm, gm, PartitionerConfig(devices, PartitionMode.size_based))
            except RuntimeError as error:
                refusal = str(error)
                if not any(words in refusal for words in REFUSALS):
                    raise
                continue
            return {node.name: partition for node, partition in partitioner.node_to_partition.items()}
        raise NoPlan(f"refuses every N up to {MOST_DEVICES}: {refusal}")

    found, seconds = timed(search, lambda: gm)
    assignment: dict[str, int] = {}
    for node in case.gm.graph.nodes:
        if node.op.startswith("call_"):  # one that was taken out goes with its inputs
            inputs = [assignment[source.name] for source in node.all_input_nodes if source.name in assignment]
            assignment[node.name] = found[node.name] if node.name in found else max(inputs, default=0)
    return Planned(assignment, seconds)


def _drop_what_has_no_tensor(graph: torch.fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if not node.users and node.op != "output" and "tensor_meta" not in node.meta:
            graph.erase_node(node)
