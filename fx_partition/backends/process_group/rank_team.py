"""The ranks of a process group as one team: they compare notes, connect, and hear of each other's end.

A team has connections of its own, so that its traffic mixes with nobody else's and can end without harm to the
group that it was made for: one set for each direction, from lower ranks to higher ones and back, as the transfers of a
pair of ranks wait for one another in their order (NCCL), and those of different directions must not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
import torch.distributed as dist

from fx_partition.common.errors import PartitionError
from fx_partition.common.own_process import OwnProcess

from ..lowering.torch_internals import store_of_world
from .consistency import ConsistencyCheck
from .failures import FailureBoard, RankError
from .gloo_threads import let_others_run, no_preemption
from .transports import Connection, connect

# By the ranks of their groups, the last one that works at the end.
_teams: dict[tuple[int, ...], list[Team]] = {}


class Team:
    """All ranks of a process group.

    Attributes:
        rank, size: this rank within the group, and how many there are.
        roll: where ranks compare notes.
        broken: why the team works no more; "" while it does.
    """

    def __init__(
        self,
        timeout: float,
        device: torch.device,
        group: dist.ProcessGroup | None,
        members: Sequence[int],
        generation: int,
    ) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._members = list(members)
        self.broken = ""
        self._stages: Mapping[int, str] = {}
        self._graphs = 0
        self._world = store_of_world()
        assert self._world is not None
        self._store = dist.PrefixStore(f"fx_partition/{'.'.join(map(str, members))}/{generation}", self._world)  # type: ignore[attr-defined]
        self.roll = ConsistencyCheck(self._store, self.rank, self.size, timeout)
        self._board = FailureBoard(self._store, self.rank, timeout)
        self._timeout, self._device = timeout, device
        self._connections: dict[str, tuple[Connection, ...]] = {}
        self._sending: list[tuple[dist.Work, torch.Tensor, int]] = []
        self._process = OwnProcess()

    @classmethod
    def current(cls, timeout: float, device: torch.device, group: dist.ProcessGroup | None = None) -> Team:
        """The team of a group, of None all ranks; a new one where there was none, or the last is broken or has ended.

        Raises:
            PartitionError: the team has another timeout.
            RuntimeError: this process was forked from the rank's.
        """
        members = tuple(dist.get_process_group_ranks(group or dist.group.WORLD))
        teams = _teams.setdefault(members, [])
        last = teams[-1] if teams else None
        if last:
            last._process.check("the team of ranks")
        if last and last._world is not store_of_world():
            last._end("their process group was destroyed")
        if last is None or last.broken:
            teams.append(cls(timeout, device, group, members, len(teams)))
        elif last._timeout != timeout:
            raise PartitionError(
                f"timeout={timeout:g}, and the ranks of this process group already wait {last._timeout:g} s for one "
                "another, as an earlier graph asked; use one timeout for all"
            )
        return teams[-1]

    def next_graph(self) -> int:
        """The number of a further graph; the same on all ranks, as they compile their graphs in the same order."""
        self._graphs += 1
        return self._graphs - 1

    def connect(self) -> None:
        """Open the connections, once; every rank has to come."""
        if self._connections or self.size == 1:
            return
        for kind in dict.fromkeys(("cpu", self._device.type)):  # headers are on the CPU
            with no_preemption():
                self._connections[kind] = tuple(
                    connect(f"{kind}/{way}", self._store, self._members, self.rank, kind, self._timeout)
                    for way in ("down", "up")
                )

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> None:
        """Start sending; the tensor must not change before `finish`."""
        try:
            # No name for the connection: frames of errors would keep it open.
            work = self._connections[tensor.device.type][rank > self.rank].send([_as_bytes(tensor)], rank, tag)
        except RuntimeError as error:
            self._lost(rank, error)
        self._sending.append((work, tensor, rank))
        let_others_run()

    def post(self, tensor: torch.Tensor, rank: int, tag: int) -> Receiving:
        """Start to receive; on a GPU, the stream waits for what arrives."""
        try:
            work = self._connections[tensor.device.type][rank < self.rank].recv([_as_bytes(tensor)], rank, tag)
        except RuntimeError as error:
            self._lost(rank, error)
        return Receiving(self, work, rank)

    def finish(self) -> None:
        """Wait until all is sent."""
        for work, _, rank in self._sending:
            self.wait(work, rank)
        self._sending.clear()

    def raised(self, where: str, error: BaseException) -> None:
        """This rank raised an error of its own: tell the others and end the team."""
        self._board.raised(where, error)
        self._end(f"rank {self.rank} raised in {where}: {type(error).__name__}: {error}")

    def begin(self, stages: Mapping[int, str]) -> None:
        """Begin a call.

        Args:
            stages: by rank, the stages that it runs, for people.

        Raises:
            RankError: the team is broken.
            RuntimeError: this process was forked from the rank's.
        """
        self._process.check("the team of ranks")
        if self.broken:
            raise RankError(f"the ranks work together no more, as {self.broken}; start the processes anew")
        self._stages = stages

    def wait(self, work: dist.Work, rank: int) -> None:
        """Wait for a transfer.

        Raises:
            RankError: the other rank failed.
        """
        try:
            work.wait()
        except RuntimeError as error:
            self._lost(rank, error)

    def _lost(self, rank: int, error: BaseException) -> NoReturn:
        self._board.waited(rank)
        cause = self._board.cause(rank, self._stages, error)
        self._end(cause)
        raise RankError(cause) from error

    def _end(self, cause: str) -> None:
        """Close the connections, which ends what others wait for."""
        self.broken = cause
        while self._connections:
            for connection in self._connections.popitem()[1]:
                connection.shutdown()
            del connection  # this frame, too, would keep it open
        self._sending.clear()


class Receiving:
    """A receive that was posted."""

    def __init__(self, team: Team, work: dist.Work, rank: int) -> None:
        self._team, self._work, self._rank = team, work, rank

    def wait(self) -> None:
        """Wait for what arrives.

        Raises:
            RankError: the sender failed.
        """
        self._team.wait(self._work, self._rank)


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor; transports know fewer dtypes than torch."""
    return tensor.reshape(-1).view(torch.uint8)
