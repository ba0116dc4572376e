"""The schedule of each rank in a call: the stages that it runs, and the messages that it sends and receives, in order.

Terms
-----
message
    The values that one stage sends to one rank: all values of the stage that the rank's own stages, or its results,
    need. Rank 0 has the inputs of the graph and sends them in messages of the pseudo-stage -1.
direction
    From a lower rank to a higher one, or back. Each direction has connections of its own (see `rank_team`), so a send
    and a receive of two ranks cannot wait for each other.

A rank runs its stages in the order of the plan, each for all microbatches before the next stage. It receives the inputs
of a stage right before it runs the stage, and sends the results right after it, without waiting. In the order of the
plan each value is computed before it is read, and sends do not wait, so there is no deadlock. Messages of one rank to
another arrive in the order in which they are sent, as transports without tags (NCCL) need it: a rank that needs a later
message first receives the earlier ones.

Example: stages 0 and 2 on rank 0, 1 and 3 on rank 1, all ranks return the result::

    rank 0:  send inputs;  run 0, send to 1;  receive from stage 1, run 2, send to 1;       receive the result
    rank 1:  receive inputs;  receive from stage 0, run 1, send to 0;  receive from stage 2, run 3, send the result
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.fx

from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.split.extract import PartitionGraph

#: The pseudo-stage that has the inputs of the graph as its results, on rank 0.
INPUTS = -1


@dataclass(frozen=True)
class Message:
    """The values that stage ``stage`` on rank ``source`` sends to rank ``target``.

    Attributes:
        tag: the number of the message among all messages of the graph.
        nodes: the values, in the order in which they are sent.
    """

    stage: int
    source: int
    target: int
    tag: int
    nodes: tuple[torch.fx.Node, ...]


@dataclass(frozen=True)
class RankStep:
    """One stage of a rank.

    Attributes:
        stage: the number of the stage.
        early: messages to receive for all microbatches before the first one runs.
        receives: messages to receive before each microbatch.
        sends: messages to send after each microbatch.
    """

    stage: int
    early: tuple[Message, ...]
    receives: tuple[Message, ...]
    sends: tuple[Message, ...]


@dataclass(frozen=True)
class Schedule:
    """The schedule of one rank in a call.

    Attributes:
        inputs: messages with the graph's inputs to send at the start; empty on all ranks but rank 0.
        steps: the stages of the rank.
        results: messages to receive after the last stage.
        returns: whether the rank returns the results of the graph.
    """

    inputs: tuple[Message, ...]
    steps: tuple[RankStep, ...]
    results: tuple[Message, ...]
    returns: bool


class Messages:
    """All messages of a graph.

    Args:
        captured: the graph that was split.
        partitions: the graphs of all stages, in order.
        rank_of: the rank of each stage.
        size: the number of ranks.
        output: "all": all ranks return the results; "last": the rank of the last stage does.
        written: the names of inputs and weights that a stage writes in place; rank 0 receives the new values of the
            caller's inputs.
    """

    def __init__(
        self,
        captured: CapturedGraph,
        partitions: Sequence[PartitionGraph],
        rank_of: Sequence[int],
        size: int,
        output: str,
        written: frozenset[str],
    ) -> None:
        self._partitions, self._rank_of = partitions, rank_of
        self._returning = range(size) if output == "all" else (rank_of[-1],)
        self._maker = {node: stage for stage, partition in enumerate(partitions) for node in partition.outputs}
        self._home = {
            node: INPUTS
            for node in captured.gm.graph.find_nodes(op="placeholder")
            if node not in captured.weights and isinstance(captured.values.get(node), torch.Tensor)
        }
        self._written_by = self._writers(written)
        self._sent_by: dict[int, list[Message]] = {}
        self._received_by: dict[int, list[tuple[Message, int]]] = {}  # with the first stage that needs it
        wanted = self._wanted(captured)
        for tag, (stage, target) in enumerate(sorted(wanted)):
            nodes = wanted[stage, target]
            message = Message(stage, self._rank(stage), target, tag, tuple(nodes))
            self._sent_by.setdefault(stage, []).append(message)
            self._received_by.setdefault(target, []).append((message, min(nodes.values())))

    @property
    def made(self) -> Collection[torch.fx.Node]:
        """The values that stages compute for other stages or for the results."""
        return self._maker.keys()

    def of(self, rank: int) -> Schedule:
        """Return the schedule of one rank."""
        due = self._due_in_order(rank)
        own = [stage for stage, home in enumerate(self._rank_of) if home == rank]
        steps = []
        for stage in own:
            arriving = [message for message, when in due if when == stage]
            last = {message.source: message for message in arriving}
            early = tuple(m for m in arriving if last[m.source] is not m)
            steps.append(RankStep(stage, early, tuple(last.values()), self.sent_by(stage)))
        end = len(self._partitions)
        return Schedule(
            inputs=self.sent_by(INPUTS) if rank == 0 else (),
            steps=tuple(steps),
            results=tuple(message for message, when in due if when == end),
            returns=rank in self._returning,
        )

    def written_by(self, node: torch.fx.Node) -> int | None:
        """Return the stage that writes an input of the caller; None if none does."""
        return self._written_by.get(node)

    def maker_rank(self, node: torch.fx.Node) -> int | None:
        """Return the rank that computes or holds a value first; None for a weight: each rank that needs it has it."""
        stage = self._maker.get(node, self._home.get(node))
        return None if stage is None else self._rank(stage)

    def _rank(self, stage: int) -> int:
        return 0 if stage == INPUTS else self._rank_of[stage]

    def _writers(self, written: frozenset[str]) -> dict[torch.fx.Node, int]:
        return {
            node: stage
            for stage, partition in enumerate(self._partitions)
            for node in partition.inputs
            if node.name in written and node in self._home
        }

    def _wanted(self, captured: CapturedGraph) -> dict[tuple[int, int], dict[torch.fx.Node, int]]:
        """Return by (sending stage, receiving rank) the values, each with the first stage that reads it there."""
        end = len(self._partitions)
        output = next(iter(reversed(captured.gm.graph.nodes)))
        wanted: dict[tuple[int, int], dict[torch.fx.Node, int]] = {}

        def want(node: torch.fx.Node, rank: int, when: int, maker: int | None = None) -> None:
            made = self._maker.get(node, self._home.get(node)) if maker is None else maker
            if made is None or self._rank(made) == rank:  # a weight, or a value of the same rank
                return
            wanted.setdefault((made, rank), {}).setdefault(node, when)

        for stage, partition in enumerate(self._partitions):
            for node in partition.inputs:
                want(node, self._rank_of[stage], stage)
        for node, writer in self._written_by.items():
            want(node, 0, end, writer)
        for rank in self._returning:
            for node in output.all_input_nodes:
                if not (rank == 0 and node in self._home):
                    want(node, rank, end, self._written_by.get(node))
        return wanted

    def _due_in_order(self, rank: int) -> list[tuple[Message, int]]:
        """Return the messages to a rank, each with the stage before which the rank receives it.

        Messages from one rank are received in the order in which they are sent, so a message is received no later than
        any later message from the same rank.
        """
        first: dict[int, int] = {}
        found = []
        for message, needed in reversed(self._received_by.get(rank, [])):
            when = min(needed, first.get(message.source, needed))
            first[message.source] = when
            found.append((message, when))
        return found[::-1]

    def sent_by(self, stage: int) -> tuple[Message, ...]:
        """Return the messages that a stage sends, in order."""
        return tuple(self._sent_by.get(stage, ()))


def number_inputs(captured: CapturedGraph) -> Mapping[torch.fx.Node, type]:
    """Return the inputs that are numbers, above all sizes, with their types; rank 0 sends them to all ranks."""
    return {
        node: kind
        for node in captured.gm.graph.find_nodes(op="placeholder")
        if (kind := number_type(captured.values.get(node))) is not None
    }


def number_type(value: object) -> type | None:
    """Return the Python type of a scalar that is known only when the graph runs; None for any other value."""
    if isinstance(value, torch.SymInt):
        return int
    if isinstance(value, torch.SymFloat):
        return float
    return bool if isinstance(value, torch.SymBool) else None
