"""Connections among some ranks that these alone make, whatever process groups each of them has seen before.

``torch.distributed.new_group`` asks either all ranks of the world to come, or lets those of the group meet under a name
that counts the groups which a rank is in: ranks that are in different numbers of groups never meet. Here they meet in
the store that they are given, under a name of ours.
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
    """What is used of a transport of torch.distributed, and a process group has too; ranks count within it."""

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> dist.Work:
        """Start to send one tensor."""

    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> dist.Work:
        """Start to receive into one tensor."""

    def allreduce(self, tensors: list[torch.Tensor], /) -> dist.Work:
        """Start to replace one tensor by the sum of those of all ranks."""

    def broadcast(self, tensor: torch.Tensor, rank: int, /) -> dist.Work:
        """Start to replace one tensor by that of a rank."""

    def shutdown(self) -> None:
        """End it, which wakes others of NCCL; gloo's others wake when the last reference is gone."""


def connect(name: str, store: Store, members: Sequence[int], rank: int, kind: str, timeout: float) -> Connection:
    """Connect the ranks that call this with one name; each waits for the others.

    Args:
        name: the same on all of them, and used once in this store.
        store: which all of them have.
        members: the ranks by their numbers in the world.
        rank: this one's place among them.
        kind: type of the device whose tensors are to go: "cpu" (gloo), else NCCL.
        timeout: seconds to wait for the others, now and in each transfer.
    """
    made: Connection = new_transport(name, store, members, rank, kind, datetime.timedelta(seconds=timeout))
    _open[made] = OwnProcess()
    return made


@atexit.register
def _shut_down() -> None:
    """As ``destroy_process_group`` does for its own: NCCL must not be left to the end of the interpreter."""
    for connection, process in list(_open.items()):
        if process.is_this:  # a forked child would close what its parent works with
            connection.shutdown()
