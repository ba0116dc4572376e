"""Run a rank's part of a call: receive, run the rank's own stages, send, and return the graph's results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.fx

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.captured_graph import CapturedGraph

from ..lowering.stage import Stage
from ..process_group.rank_team import Team
from .message_codec import MessageCodec, PendingMessage, decode_number, encode_number
from .microbatches import Microbatches
from .schedule import Message, Messages, number_inputs

#: The number of tags of one graph: two for each message, and one for the sizes of inputs.
TAGS = 1 << 16

_Table: TypeAlias = "dict[torch.fx.Node, Any]"
_Posted: TypeAlias = "list[tuple[MessageCodec, PendingMessage]]"


class RankFunction:
    """The compiled function of a graph on one rank.

    Args:
        captured: the graph that the stages were cut from.
        stages: this rank's, in order.
        compiled: their code, taking ``stage.partition.inputs`` and returning ``stage.partition.outputs``.
        messages: those of the whole graph.
        team: the ranks; each makes the functions of its graphs in the same order.
        names: by rank, the stages that it runs, for people.
        device: the device of this rank's stages.
        microbatches: how a call is split; None: the batch runs whole.

    Attributes:
        reads: the positions of the graph's inputs that the stages of this rank read.
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
        read = {node for stage in stages for node in stage.partition.inputs}
        self.reads = frozenset(i for i, node in enumerate(self._placeholders) if node in read)
        self._attributes = {node: tensor for node, tensor in captured.weights.items() if node.op != "placeholder"}
        schedule = messages.of(team.rank)
        self._numbers = list(number_inputs(captured).items())
        sizes = {node: captured.values[node].node.expr for node, kind in self._numbers if kind is int}
        sizes = {node: symbol for node, symbol in sizes.items() if symbol.is_Symbol}
        self._sizes, symbols = list(sizes), list(sizes.values())
        self._peers = [rank for rank in range(team.size) if rank != team.rank] if team.rank == 0 else []

        def codec(message: Message) -> MessageCodec:
            tag = self._tag + 1 + 2 * message.tag
            return MessageCodec(message, [captured.values[node] for node in message.nodes], device, tag, symbols)

        self._inputs = [codec(message) for message in schedule.inputs]
        self._steps = [
            _CompiledStep(
                stage, code, [codec(m) for m in step.early], [codec(m) for m in step.receives],
                [codec(m) for m in step.sends],
            )
            for stage, code, step in zip(stages, compiled, schedule.steps, strict=True)
        ]
        self._last = [codec(message) for message in schedule.results]
        written = [n for n in self._placeholders if messages.written_by(n) not in (None, *(s.index for s in stages))]
        self._written = written if team.rank == 0 else []
        (output,) = captured.gm.graph.find_nodes(op="output")
        self._results = [_obtainable(leaf, captured, messages.made) for leaf in output.args[0]]
        self._returns = schedule.returns
        self._drop_dead_values(set(output.all_input_nodes))

    def put(self, stage: Stage, code: Callable[..., Any]) -> None:
        """Replace the code of a stage of this rank."""
        next(step for step in self._steps if step.index == stage.index).code = code

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        self._team.begin(self._names)
        table: _Table = {**self._attributes, **dict(zip(self._placeholders, args, strict=True))}
        self._share_numbers(table)
        tables = [table]
        if self._microbatches:
            tables = self._microbatches.split(table, inputs=self._team.rank == 0)
        self._send(self._inputs, tables)
        for step in self._steps:
            self._receive(step.early, tables)
            posted: Iterator[_Posted] = (self._post(step.receives, microbatch) for microbatch in tables)
            if not any(codec.has_header for codec in step.receives):
                # Post all receives at once, so that transfers go on while stages run. A receive with a header waits for
                # it, so such receives are posted one by one.
                posted = iter(list(posted))
            for microbatch in tables:
                self._take(next(posted), microbatch)
                self._run(step, microbatch)
                self._send(step.sends, [microbatch])
                for node in step.dead:
                    del microbatch[node]
        # Another rank wrote its copies of these inputs: write its results into the caller's own tensors.
        originals = {node: table[node] for node in self._written}
        self._receive(self._last, tables)
        for node, tensor in originals.items():
            tensor.copy_(table[node])
            table[node] = tensor
        self._team.finish()
        if not self._returns:
            return (None,) * len(self._results)
        if self._microbatches:
            return tuple(self._microbatches.join(self._results, tables, table))
        return tuple(table[leaf] if isinstance(leaf, torch.fx.Node) else leaf for leaf in self._results)

    def _drop_dead_values(self, returned: set[torch.fx.Node]) -> None:
        """Let each step drop the values of stages that no later step and no result needs."""
        last: dict[torch.fx.Node, _CompiledStep] = {}
        for step in self._steps:
            received = [node for codec in (*step.early, *step.receives) for node in codec.message.nodes]
            last |= dict.fromkeys((*received, *step.outputs, *step.inputs), step)
        for node, step in last.items():
            if node.op != "placeholder" and node not in self._attributes and node not in returned:
                step.dead.append(node)

    def _share_numbers(self, table: _Table) -> None:
        """Send the numbers among rank 0's inputs, above all sizes, to all ranks."""
        if not self._numbers:
            return
        if self._team.rank == 0:
            bits_of_all = torch.tensor([encode_number(table[node]) for node, _ in self._numbers], dtype=torch.int64)
            for peer in self._peers:
                self._team.send(bits_of_all, peer, self._tag)
            return
        bits_of_all = torch.empty(len(self._numbers), dtype=torch.int64)
        self._team.post(bits_of_all, 0, self._tag).wait()
        for (node, kind), bits in zip(self._numbers, bits_of_all.tolist(), strict=True):
            table[node] = decode_number(bits, kind)

    def _send(self, codecs: Sequence[MessageCodec], tables: Sequence[_Table]) -> None:
        for codec in codecs:
            for table in tables:
                codec.send([table[node] for node in codec.message.nodes], self._team)

    def _post(self, codecs: Sequence[MessageCodec], table: _Table) -> _Posted:
        numbers = [table[node] for node in self._sizes]
        return [(codec, codec.post(self._team, numbers)) for codec in codecs]

    def _take(self, posted: _Posted, table: _Table) -> None:
        for codec, message in posted:
            table.update(zip(codec.message.nodes, message.wait(), strict=True))

    def _receive(self, codecs: Sequence[MessageCodec], tables: Sequence[_Table]) -> None:
        for codec in codecs:
            for table in tables:
                self._take(self._post([codec], table), table)

    def _run(self, step: _CompiledStep, table: _Table) -> None:
        try:
            results = step.code(*(table[node] for node in step.inputs))
        except BaseException as error:
            self._team.raised(step.name, error)
            raise
        table.update(zip(step.outputs, results, strict=True))


class _CompiledStep:
    """A stage of this rank: its code, and the messages that it receives and sends."""

    def __init__(
        self,
        stage: Stage,
        code: Callable[..., Any],
        early: Sequence[MessageCodec],
        receives: Sequence[MessageCodec],
        sends: Sequence[MessageCodec],
    ) -> None:
        self.index, self.name = stage.index, f"stage {stage.index}"
        self.code, self.early, self.receives, self.sends = code, early, receives, sends
        self.inputs, self.outputs = stage.partition.inputs, stage.partition.outputs
        self.dead: list[torch.fx.Node] = []


def _obtainable(leaf: Any, captured: CapturedGraph, made: Collection[torch.fx.Node]) -> Any:
    """Return a leaf of the results if a stage computes it or every rank has it.

    Raises:
        PartitionError: the leaf is neither.
    """
    if isinstance(leaf, torch.fx.Node) and not (leaf in made or leaf.op == "placeholder" or leaf in captured.weights):
        raise PartitionError(
            f"the graph returns {leaf.name}, which is computed from weights alone; compute it outside the model"
        )
    return leaf
