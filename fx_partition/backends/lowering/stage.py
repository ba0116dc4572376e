"""A stage: a partition lowered to one device, with its sends and receives in its graph.

Before (a partition with the inputs ``relu`` and a weight, and the result ``add`` for stage 2)::

    def forward(self, relu, bias):
        add = relu + bias
        return (add,)

After::

    def forward(self, bias):
        recv = torch.ops.fx_partition.recv.default([4, 256], torch.float32, device(type='cpu'), 0, 'relu')
        add = recv + bias
        send = torch.ops.fx_partition.send.default(add, 2, 'add')
        return ()

The in-line runtime compiles the form before: each ``recv`` is an argument, each ``send`` a result.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.fx

from fx_partition.common.errors import UnreadableError
from fx_partition.passes.capture.captured_graph import CapturedGraph, value_of
from fx_partition.passes.capture.symbolic_sizes import to_expr
from fx_partition.passes.constraints.handed_on_writes import received_writes
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.split.extract import PartitionGraph, cut

from ..devices.home_device import home_of, place
from .repeated_views import repeat_views
from .send_recv_ops import RECV, SEND
from .size_nodes import write_size


def split_stages(captured: CapturedGraph, plan: Plan, memory: GraphMemory) -> list[PartitionGraph]:
    """Split a planned graph into one graph for each stage; a stage that writes a received value writes a copy of it.

    Other stages may read the received value at any time (see `constraints.handed_on_writes`).

    Args:
        captured, memory: the planned graph (see `graph_context.planned_with_memory`).
    """
    returned = next(iter(reversed(captured.gm.graph.nodes))).all_input_nodes
    partitions = repeat_views(cut(captured, plan), returned)
    for partition, written in zip(partitions, received_writes(memory, [p.nodes for p in plan.partitions]), strict=True):
        _write_copies(partition, written)
    return partitions


def _write_copies(partition: PartitionGraph, written: frozenset[str]) -> None:
    graph = partition.module.graph
    placeholders = graph.find_nodes(op="placeholder")
    copies: dict[int, torch.fx.Node] = {}
    for node, placeholder in zip(partition.inputs, placeholders, strict=True):
        if node.name in written:
            other = copies.setdefault(id(value_of(node).untyped_storage()), node)
            if other is not node:  # in two copies a write into one would not be seen in the other
                raise UnreadableError(
                    f"{other.name} and {node.name} are views of one memory that another partition writes, and neither "
                    "can be made from the other there"
                )
            with graph.inserting_after(placeholders[-1]):
                copied = graph.call_method("clone", (placeholder,))
            copied.meta = dict(placeholder.meta)
            placeholder.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
    partition.module.recompile()


class Boundaries:
    """The stages that make and take the values that cross the boundaries of a graph; the peers of a stage are stages.

    Attributes:
        maker: the stage that makes a value.
        takers: the stages that take a value.
        returned: the nodes that the graph returns.
        symbol_inputs: the input of each size symbol, by its name.
        home: the device of the model.
    """

    def __init__(self, captured: CapturedGraph, partitions: list[PartitionGraph]) -> None:
        self.maker = {node: index for index, partition in enumerate(partitions) for node in partition.outputs}
        self.takers: dict[torch.fx.Node, list[int]] = {}
        for index, partition in enumerate(partitions):
            for node in partition.inputs:
                if node in self.maker:
                    self.takers.setdefault(node, []).append(index)
        output = next(iter(reversed(captured.gm.graph.nodes)))
        self.returned = set(output.all_input_nodes)
        self.symbol_inputs = captured.symbol_inputs
        self.home = home_of(captured)

    def sender(self, node: torch.fx.Node, stage: int) -> int | None:
        """Return the peer that sends a stage an input; None where the input is not received."""
        return self.maker.get(node)

    def receivers(self, node: torch.fx.Node, stage: int) -> Sequence[int]:
        """Return the peers to which a stage sends a result."""
        return self.takers.get(node, ())

    def keeps(self, node: torch.fx.Node, stage: int) -> bool:
        """Return whether a result is needed where the stage runs."""
        return node in self.returned


@dataclass(frozen=True)
class Stage:
    """One partition on one device.

    Attributes:
        index: the index of the partition.
        device: the device that runs it.
        partition: its graph, and the nodes of the whole graph that are its inputs and outputs.
        boundaries: the boundaries of the whole graph.
    """

    index: int
    device: torch.device
    partition: PartitionGraph
    boundaries: Boundaries

    def place(self, value: torch.Tensor) -> torch.device:
        """Return the device on which the stage has a value of the trace."""
        return place(value.device, self.boundaries.home, self.device)

    def graph(self) -> torch.fx.GraphModule:
        """Return the stage's graph with sends and receives as nodes.

        Inputs, sizes and weights of the whole graph are placeholders; tensors of other stages arrive by ``recv``, and
        results for them leave by ``send``. It returns its results of the whole graph, and numbers for other stages.
        """
        graph = copy.deepcopy(self.partition.module.graph)
        taken = dict(zip(self.partition.inputs, graph.find_nodes(op="placeholder"), strict=True))
        self._receive(graph, taken)
        self._send(graph)
        graph.lint()
        return torch.fx.GraphModule(self.partition.module, graph, class_name=f"Stage{self.index}")

    def _receive(self, graph: torch.fx.Graph, taken: dict[torch.fx.Node, torch.fx.Node]) -> None:
        senders = {node: self.boundaries.sender(node, self.index) for node in self.partition.inputs if _is_tensor(node)}
        received = [node for node, peer in senders.items() if peer is not None]
        shapes = {node: [to_expr(size) for size in value_of(node).shape] for node in received}
        sizes = {name: taken[node] for name, node in self.boundaries.symbol_inputs.items() if node in taken}
        last = list(taken.values())[-1] if taken else None
        with graph.inserting_before(last.next if last else next(iter(graph.nodes))):
            for node in received:
                shape = [write_size(graph, size, sizes) for size in shapes[node]]
                value = value_of(node)
                arguments = (shape, value.dtype, self.place(value), senders[node], node.name)
                recv = graph.call_function(RECV, arguments)
                recv.meta = dict(node.meta)
                taken[node].replace_all_uses_with(recv)
                graph.erase_node(taken[node])

    def _send(self, graph: torch.fx.Graph) -> None:
        output = next(iter(reversed(graph.nodes)))
        results = output.args[0]
        assert isinstance(results, tuple)
        kept = []
        with graph.inserting_before(output):
            for node, value in zip(self.partition.outputs, results, strict=True):
                if _is_tensor(node):
                    for peer in self.boundaries.receivers(node, self.index):
                        graph.call_function(SEND, (value, peer, node.name))
                if self.boundaries.keeps(node, self.index) or not _is_tensor(node):
                    kept.append(value)
        output.args = (tuple(kept),)


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(value_of(node), torch.Tensor)
