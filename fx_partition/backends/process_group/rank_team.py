"""The ranks of a process group as one team: they compare documents, connect, and learn of each other's failures.

A team has connections of its own, so its traffic does not mix with that of others, and it can end without harm to the
group that it was made for. It has one set for each direction, from lower ranks to higher ones and back: NCCL runs the
transfers of a pair of ranks in order, so transfers of different directions would otherwise wait for one another.
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

# By the ranks of their group; the last team is the one in use.
_teams: dict[tuple[int, ...], list[Team]] = {}


class Team:
    """All ranks of a process group.

    Attributes:
        rank, size: this rank within the group, and the number of ranks.
        consistency: compares the documents of the ranks.
        broken: why the team has ended; "" while it works.
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
        self.consistency = ConsistencyCheck(self._store, self.rank, self.size, timeout)
        self._board = FailureBoard(self._store, self.rank, timeout)
        self._timeout, self._device = timeout, device
        self._connections: dict[str, tuple[Connection, ...]] = {}
        self._sending: list[tuple[dist.Work, torch.Tensor, int]] = []
        self._process = OwnProcess()

    @classmethod
    def current(cls, timeout: float, device: torch.device, group: dist.ProcessGroup | None = None) -> Team:
        """Return the team of a group, or of all ranks for None; make one if there is none or the last has ended.

        Raises:
            PartitionError: the group's team has another timeout.
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
                f"timeout={timeout:g} differs from the {last._timeout:g} s of an earlier graph on this process group; "
                "use one timeout for all graphs"
            )
        return teams[-1]

    def next_graph(self) -> int:
        """Return the number of the next graph; it is the same on all ranks, which compile graphs in the same order."""
        self._graphs += 1
        return self._graphs - 1

    def connect(self) -> None:
        """Open the connections, once; returns when every rank has called it."""
        if self._connections or self.size == 1:
            return
        for kind in dict.fromkeys(("cpu", self._device.type)):  # headers are sent from the CPU
            with no_preemption():
                self._connections[kind] = tuple(
                    connect(f"{kind}/{way}", self._store, self._members, self.rank, kind, self._timeout)
                    for way in ("down", "up")
                )

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> None:
        """Start sending; the tensor must not change before `finish`."""
        try:
            # No local variable for the connection: the frame of an error would keep it open.
            work = self._connections[tensor.device.type][rank > self.rank].send([_as_bytes(tensor)], rank, tag)
        except RuntimeError as error:
            self._lost(rank, error)
        self._sending.append((work, tensor, rank))
        let_others_run()

    def post(self, tensor: torch.Tensor, rank: int, tag: int) -> PendingReceive:
        """Start to receive into a tensor; on a GPU, the current stream waits for the transfer."""
        try:
            work = self._connections[tensor.device.type][rank < self.rank].recv([_as_bytes(tensor)], rank, tag)
        except RuntimeError as error:
            self._lost(rank, error)
        return PendingReceive(self, work, rank)

    def finish(self) -> None:
        """Wait until all tensors are sent."""
        for work, _, rank in self._sending:
            self.wait(work, rank)
        self._sending.clear()

    def raised(self, where: str, error: BaseException) -> None:
        """Tell the other ranks that this one raised an error, and end the team."""
        self._board.raised(where, error)
        self._end(f"rank {self.rank} raised in {where}: {type(error).__name__}: {error}")

    def begin(self, stages: Mapping[int, str]) -> None:
        """Begin a call.

        Args:
            stages: by rank, a description of its stages.

        Raises:
            RankError: the team has ended.
            RuntimeError: this process was forked from the rank's.
        """
        self._process.check("the team of ranks")
        if self.broken:
            raise RankError(f"the team of ranks has ended, as {self.broken}; start the processes again")
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
        """Close the connections, which ends the transfers that other ranks wait for."""
        self.broken = cause
        while self._connections:
            for connection in self._connections.popitem()[1]:
                connection.shutdown()
            del connection  # this frame would keep it open, too
        self._sending.clear()


class PendingReceive:
    """A receive that has started."""

    def __init__(self, team: Team, work: dist.Work, rank: int) -> None:
        self._team, self._work, self._rank = team, work, rank

    def wait(self) -> None:
        """Wait until the tensor has arrived.

        Raises:
            RankError: the sender failed.
        """
        self._team.wait(self._work, self._rank)


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View a contiguous tensor as bytes; transports know fewer dtypes than torch."""
    return tensor.reshape(-1).view(torch.uint8)
