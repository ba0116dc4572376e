"""What each rank does in a call: which stages it runs, and what it sends and receives, in which order.

Terms
-----
message
    What one stage gives one rank: all values of that stage that the rank's own stages, or its results, need. The inputs
    of the graph are those of rank 0, and go out in messages of the pseudo-stage -1.
direction
    From a lower rank to a higher one, or back. Each has connections of its own (see `rank_team`), so a send and a
    receive of two ranks cannot wait for each other.

A rank runs its stages in the order of the plan, for all microbatches before the next stage. Right before a stage it
receives what the stage needs; right after it, it sends, without waiting. Stages follow one another in an order in which
every value is made before it is taken, and sends do not wait, so no ring of ranks can wait for one another. Messages of
one rank to another arrive in the order in which they are sent, as transports without tags (NCCL) need it: whoever needs
a later one first receives the earlier ones.

Example: stages 0 and 2 on rank 0, 1 and 3 on rank 1, all ranks return the result::

    rank 0:  send inputs;  run 0, send to 1;  receive from stage 1, run 2, send to 1;       receive the result
    rank 1:  receive inputs;  receive from stage 0, run 1, send to 0;  receive from stage 2, run 3, send the result
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.fx

from fx_partition.passes.capture.capture_model import CapturedGraph
from fx_partition.passes.split.extract import PartitionGraph

#: The pseudo-stage that makes the inputs of the graph, on rank 0.
INPUTS = -1


@dataclass(frozen=True)
class Message:
    """What stage ``stage`` on rank ``source`` gives rank ``target``.

    Attributes:
        tag: the message's number among all of the graph.
        nodes: the values, in the order in which they are sent.
    """

    stage: int
    source: int
    target: int
    tag: int
    nodes: tuple[torch.fx.Node, ...]


@dataclass(frozen=True)
class Step:
    """One stage of a rank.

    Attributes:
        stage: which one.
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
    """What one rank does in a call.

    Attributes:
        inputs: messages of the graph's inputs to send at the start; rank 0 alone has some.
        steps: its stages.
        results: messages to receive after the last stage.
        returns: whether it returns what the graph returns.
    """

    inputs: tuple[Message, ...]
    steps: tuple[Step, ...]
    results: tuple[Message, ...]
    returns: bool


class Messages:
    """All messages of a graph.

    Args:
        captured: the graph that the stages were cut from.
        stubs: the graphs of all stages, in order.
        rank_of: the rank of each stage.
        size: the number of ranks.
        output: "all": all ranks return the results; "last": the rank of the last stage does.
        written: names of inputs that a stage writes; rank 0 gets those of the caller back.
    """

    def __init__(
        self,
        captured: CapturedGraph,
        stubs: Sequence[PartitionGraph],
        rank_of: Sequence[int],
        size: int,
        output: str,
        written: frozenset[str],
    ) -> None:
        self._stubs, self._rank_of = stubs, rank_of
        self._returning = range(size) if output == "all" else (rank_of[-1],)
        self._maker = {node: stage for stage, stub in enumerate(stubs) for node in stub.outputs}
        self._home = {
            node: INPUTS
            for node in captured.gm.graph.find_nodes(op="placeholder")
            if node not in captured.weights and isinstance(captured.values.get(node), torch.Tensor)
        }
        self._written_by = self._writers(written)
        self._sent_by: dict[int, list[Message]] = {}
        self._received_by: dict[int, list[tuple[Message, int]]] = {}  # each with the stage that first needs it
        wanted = self._wanted(captured)
        for tag, (stage, target) in enumerate(sorted(wanted)):
            nodes = wanted[stage, target]
            message = Message(stage, self._rank(stage), target, tag, tuple(nodes))
            self._sent_by.setdefault(stage, []).append(message)
            self._received_by.setdefault(target, []).append((message, min(nodes.values())))

    @property
    def made(self) -> Collection[torch.fx.Node]:
        """The values that stages make for others or for the results."""
        return self._maker.keys()

    def of(self, rank: int) -> Schedule:
        """The schedule of one rank."""
        due = self._due_in_order(rank)
        own = [stage for stage, home in enumerate(self._rank_of) if home == rank]
        steps = []
        for stage in own:
            arriving = [message for message, when in due if when == stage]
            last = {message.source: message for message in arriving}
            early = tuple(m for m in arriving if last[m.source] is not m)
            steps.append(Step(stage, early, tuple(last.values()), self.sent_by(stage)))
        end = len(self._stubs)
        return Schedule(
            inputs=self.sent_by(INPUTS) if rank == 0 else (),
            steps=tuple(steps),
            results=tuple(message for message, when in due if when == end),
            returns=rank in self._returning,
        )

    def written_by(self, node: torch.fx.Node) -> int | None:
        """The stage that writes an input of the caller."""
        return self._written_by.get(node)

    def maker_rank(self, node: torch.fx.Node) -> int | None:
        """The rank that has a value first; None for a weight, which each rank has that needs it."""
        stage = self._maker.get(node, self._home.get(node))
        return None if stage is None else self._rank(stage)

    def _rank(self, stage: int) -> int:
        return 0 if stage == INPUTS else self._rank_of[stage]

    def _writers(self, written: frozenset[str]) -> dict[torch.fx.Node, int]:
        return {
            node: stage
            for stage, stub in enumerate(self._stubs)
            for node in stub.inputs
            if node.name in written and node in self._home
        }

    def _wanted(self, captured: CapturedGraph) -> dict[tuple[int, int], dict[torch.fx.Node, int]]:
        """By (stage that makes, rank that takes): the values, each with the first stage that takes it there."""
        end = len(self._stubs)
        output = next(iter(reversed(captured.gm.graph.nodes)))
        wanted: dict[tuple[int, int], dict[torch.fx.Node, int]] = {}

        def want(node: torch.fx.Node, rank: int, when: int, maker: int | None = None) -> None:
            made = self._maker.get(node, self._home.get(node)) if maker is None else maker
            if made is None or self._rank(made) == rank:  # a weight, which each rank has, or at hand
                return
            wanted.setdefault((made, rank), {}).setdefault(node, when)

        for stage, stub in enumerate(self._stubs):
            for node in stub.inputs:
                want(node, self._rank_of[stage], stage)
        for node, writer in self._written_by.items():
            want(node, 0, end, writer)
        for rank in self._returning:
            for node in output.all_input_nodes:
                if not (rank == 0 and node in self._home):
                    want(node, rank, end, self._written_by.get(node))
        return wanted

    def _due_in_order(self, rank: int) -> list[tuple[Message, int]]:
        """The messages to a rank, each with the stage before which it is received, at the latest when a later message
        of the same rank is."""
        first: dict[int, int] = {}
        found = []
        for message, needed in reversed(self._received_by.get(rank, [])):
            when = min(needed, first.get(message.source, needed))
            first[message.source] = when
            found.append((message, when))
        return found[::-1]

    def sent_by(self, stage: int) -> tuple[Message, ...]:
        """What a stage sends, in order."""
        return tuple(self._sent_by.get(stage, ()))


def number_inputs(captured: CapturedGraph) -> Mapping[torch.fx.Node, type]:
    """The inputs of the graph that are numbers, sizes above all, with their types; rank 0 tells them to all ranks."""
    return {
        node: kind
        for node in captured.gm.graph.find_nodes(op="placeholder")
        if (kind := number_type(captured.values.get(node))) is not None
    }


def number_type(value: object) -> type | None:
    """The Python type of a scalar that is known only when the graph runs; None for what is none."""
    if isinstance(value, torch.SymInt):
        return int
    if isinstance(value, torch.SymFloat):
        return float
    return bool if isinstance(value, torch.SymBool) else None
