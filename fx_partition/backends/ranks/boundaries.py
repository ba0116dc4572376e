"""The sends and receives that a stage's printed graph shows, where the peers are ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx

from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.split.extract import PartitionGraph

from ..lowering.stage import Boundaries
from .schedule import Messages


class RankBoundaries(Boundaries):
    """Boundaries between ranks: stages of one rank need no send or receive, and rank 0 sends the graph's inputs."""

    def __init__(
        self, captured: CapturedGraph, partitions: list[PartitionGraph], ranks: Sequence[int], messages: Messages
    ) -> None:
        super().__init__(captured, partitions)
        self._ranks, self._messages = ranks, messages

    def sender(self, node: torch.fx.Node, stage: int) -> int | None:
        peer = self._messages.maker_rank(node)
        return None if peer == self._ranks[stage] else peer

    def receivers(self, node: torch.fx.Node, stage: int) -> Sequence[int]:
        return [message.target for message in self._messages.sent_by(stage) if node in message.nodes]

    def keeps(self, node: torch.fx.Node, stage: int) -> bool:
        here = self._ranks[stage]
        return super().keeps(node, stage) or any(self._ranks[taker] == here for taker in self.takers.get(node, ()))
