"""Runs a rank's part of a call: receive, run own stages, send; return what the graph returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.fx

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.capture_model import CapturedGraph

from ..lowering.stage import Stage
from ..process_group.rank_team import Team
from .message_codec import Posted, Wire, decode_number, encode_number
from .microbatches import Microbatches
from .schedule import Message, Messages, number_inputs

#: Tags of one graph's messages; two each, and one for the sizes.
TAGS = 1 << 16

_Table: TypeAlias = "dict[torch.fx.Node, Any]"


class RankFunction:
    """The compiled function of a graph on one rank.

    Args:
        captured: the graph that the stages were cut from.
        stages: this rank's, in order.
        compiled: their code, taking ``stage.stub.inputs`` and returning ``stage.stub.outputs``.
        messages: those of the whole graph.
        team: the ranks; each makes the functions of its graphs in the same order.
        names: by rank, the stages that it runs, for people.
        device: the device of this rank's stages.
        microbatches: how a call is cut; None: it runs whole.

    Attributes:
        reads: which of the graph's inputs the stages of this rank read.
    """

    def __init__(
        self,
        captured: CapturedGraph,
        stages: Sequence[Stage],
        compiled: Sequence[Callable[..., Any]],
        messages: Messages,
        team: Team,
        names: Mapping[int, str],
        device: torch.device,
        microbatches: Microbatches | None = None,
    ) -> None:
        self._team = team
        self._microbatches = microbatches
        self._names = names
        self._tag = team.next_graph() * TAGS
        self._placeholders = captured.gm.graph.find_nodes(op="placeholder")
        read = {node for stage in stages for node in stage.stub.inputs}
        self.reads = frozenset(i for i, node in enumerate(self._placeholders) if node in read)
        self._attributes = {node: tensor for node, tensor in captured.weights.items() if node.op == "get_attr"}
        schedule = messages.of(team.rank)
        self._numbers = list(number_inputs(captured).items())
        sizes = {node: captured.values[node].node.expr for node, kind in self._numbers if kind is int}
        sizes = {node: symbol for node, symbol in sizes.items() if symbol.is_Symbol}
        self._sizes, symbols = list(sizes), list(sizes.values())
        self._peers = [rank for rank in range(team.size) if rank != team.rank] if team.rank == 0 else []

        def wired(message: Message) -> Wire:
            tag = self._tag + 1 + 2 * message.tag
            return Wire(message, [captured.values[node] for node in message.nodes], device, tag, symbols)

        self._inputs = [wired(message) for message in schedule.inputs]
        self._steps = [
            _Step(
                stage, code, [wired(m) for m in step.early], [wired(m) for m in step.receives],
                [wired(m) for m in step.sends],
            )
            for stage, code, step in zip(stages, compiled, schedule.steps, strict=True)
        ]
        self._last = [wired(message) for message in schedule.results]
        written = [n for n in self._placeholders if messages.written_by(n) not in (None, *(s.index for s in stages))]
        self._written = written if team.rank == 0 else []
        (output,) = captured.gm.graph.find_nodes(op="output")
        self._results = [_obtainable(leaf, captured, messages.made) for leaf in output.args[0]]
        self._returns = schedule.returns
        self._drop_dead_values(set(output.all_input_nodes))

    def put(self, stage: Stage, code: Callable[..., Any]) -> None:
        """Let a stage of this rank run other code."""
        next(step for step in self._steps if step.index == stage.index).code = code

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        self._team.begin(self._names)
        table: _Table = {**self._attributes, **dict(zip(self._placeholders, args, strict=True))}
        self._tell_numbers(table)
        tables = [table]
        if self._microbatches:
            tables = self._microbatches.cut(table, inputs=self._team.rank == 0)
        self._send(self._inputs, tables)
        for step in self._steps:
            self._receive(step.early, tables)
            posted: Iterator[list[tuple[Wire, Posted]]] = (self._post(step.receives, part) for part in tables)
            if not any(wire.has_header for wire in step.receives):  # a header is waited for where it is posted
                posted = iter(list(posted))  # transfers go on while stages run
            for part in tables:
                self._take(next(posted), part)
                self._run(step, part)
                self._send(step.sends, [part])
                for node in step.dead:
                    del part[node]
        mine = {node: table[node] for node in self._written}
        self._receive(self._last, tables)
        for node, tensor in mine.items():
            tensor.copy_(table[node])
            table[node] = tensor
        self._team.finish()
        if not self._returns:
            return (None,) * len(self._results)
        if self._microbatches:
            return tuple(self._microbatches.join(self._results, tables, table))
        return tuple(table[leaf] if isinstance(leaf, torch.fx.Node) else leaf for leaf in self._results)

    def _drop_dead_values(self, returned: set[torch.fx.Node]) -> None:
        """After which step a value that a stage made is needed no more."""
        last: dict[torch.fx.Node, _Step] = {}
        for step in self._steps:
            received = [node for wire in (*step.early, *step.receives) for node in wire.message.nodes]
            last |= dict.fromkeys((*received, *step.outputs, *step.inputs), step)
        for node, step in last.items():
            if node.op not in ("placeholder", "get_attr") and node not in returned:
                step.dead.append(node)

    def _tell_numbers(self, table: _Table) -> None:
        """Sizes are those of rank 0's inputs."""
        if not self._numbers:
            return
        if self._team.rank == 0:
            told = torch.tensor([encode_number(table[node]) for node, _ in self._numbers], dtype=torch.int64)
            for peer in self._peers:
                self._team.send(told, peer, self._tag)
            return
        told = torch.empty(len(self._numbers), dtype=torch.int64)
        self._team.post(told, 0, self._tag).wait()
        for (node, kind), bits in zip(self._numbers, told.tolist(), strict=True):
            table[node] = decode_number(bits, kind)

    def _send(self, wires: Sequence[Wire], tables: Sequence[_Table]) -> None:
        for wire in wires:
            for table in tables:
                wire.send([table[node] for node in wire.message.nodes], self._team)

    def _post(self, wires: Sequence[Wire], table: _Table) -> list[tuple[Wire, Posted]]:
        numbers = [table[node] for node in self._sizes]
        return [(wire, wire.post(self._team, numbers)) for wire in wires]

    def _take(self, posted: Sequence[tuple[Wire, Posted]], table: _Table) -> None:
        for wire, message in posted:
            table.update(zip(wire.message.nodes, message.wait(), strict=True))

    def _receive(self, wires: Sequence[Wire], tables: Sequence[_Table]) -> None:
        for wire in wires:
            for table in tables:
                self._take(self._post([wire], table), table)

    def _run(self, step: _Step, table: _Table) -> None:
        try:
            results = step.code(*(table[node] for node in step.inputs))
        except BaseException as error:
            self._team.raised(step.name, error)
            raise
        table.update(zip(step.outputs, results, strict=True))


class _Step:
    """A stage, its code, and what it receives and sends."""

    def __init__(
        self,
        stage: Stage,
        code: Callable[..., Any],
        early: Sequence[Wire],
        receives: Sequence[Wire],
        sends: Sequence[Wire],
    ) -> None:
        self.index, self.name = stage.index, f"stage {stage.index}"
        self.code, self.early, self.receives, self.sends = code, early, receives, sends
        self.inputs, self.outputs = stage.stub.inputs, stage.stub.outputs
        self.dead: list[torch.fx.Node] = []


def _obtainable(leaf: Any, captured: CapturedGraph, made: Collection[torch.fx.Node]) -> Any:
    """A leaf of the results, if a stage makes it or every rank has it.

    Raises:
        PartitionError: it is neither.
    """
    if isinstance(leaf, torch.fx.Node) and not (leaf in made or leaf.op == "placeholder" or leaf in captured.weights):
        raise PartitionError(
            f"the graph returns {leaf.name}, which depends on weights alone; return it apart from the model's results"
        )
    return leaf
