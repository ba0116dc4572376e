"""Connections among some ranks, for which only these ranks need to call.

``torch.distributed.new_group`` either needs a call from all ranks of the world, or lets the ranks of the group meet
under a name that counts the groups of a rank: ranks with different numbers of groups never meet. Here ranks meet in a
given store, under a name that the caller chooses.
"""

from __future__ import annotations

import atexit
import datetime
import weakref
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from fx_partition.common.own_process import OwnProcess

from ..lowering.torch_internals import Store, new_transport

_open: weakref.WeakKeyDictionary[Connection, OwnProcess] = weakref.WeakKeyDictionary()


class Connection(Protocol):
    """The methods that are used of a transport of torch.distributed (process groups have them too).

    Ranks are counted within the connection.
    """

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> dist.Work:
        """Start to send one tensor."""

    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> dist.Work:
        """Start to receive into one tensor."""

    def allreduce(self, tensors: list[torch.Tensor], /) -> dist.Work:
        """Start to replace one tensor by the sum of the tensors of all ranks."""

    def broadcast(self, tensor: torch.Tensor, rank: int, /) -> dist.Work:
        """Start to replace one tensor by the tensor of one rank."""

    def shutdown(self) -> None:
        """End the connection. This wakes the peers with NCCL; with gloo they wake when the last reference is gone."""


def connect(name: str, store: Store, members: Sequence[int], rank: int, kind: str, timeout: float) -> Connection:
    """Connect the ranks that call this with the same name; each waits for the others.

    Args:
        name: a name that is used once in this store.
        store: a store that all the ranks share.
        members: the numbers of the ranks in the world.
        rank: the position of this rank in ``members``.
        kind: the device type of the tensors to send: "cpu" (gloo), else NCCL.
        timeout: seconds to wait for the others, now and in each transfer.
    """
    made: Connection = new_transport(name, store, members, rank, kind, datetime.timedelta(seconds=timeout))
    _open[made] = OwnProcess()
    return made


@atexit.register
def _shut_down() -> None:
    """Shut all connections down, as ``destroy_process_group`` does: NCCL must end before the interpreter does."""
    for connection, process in list(_open.items()):
        if process.is_this:  # a forked child would close the connections of its parent
            connection.shutdown()
