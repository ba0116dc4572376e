"""Send and receive as operators, so that a stage's graph shows the values that cross its boundaries.

A stage that receives ``relu`` from stage 0 and sends ``add`` to stage 2 prints as::

    recv = torch.ops.fx_partition.recv([4, 256], torch.float32, 'cpu', 0, 'relu')
    add = recv + bias
    send = torch.ops.fx_partition.send(add, 2, 'add')

Within one process they exchange tensors by a mailbox of the calling thread. The in-line runtime does not run them: it
compiles the partition without them (see `lowering.stage`), where each is an argument or a result, and costs nothing.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque

import torch
from torch import Tensor
from torch.fx.node import has_side_effect


class _Mailbox(threading.local):
    """Tensors that were sent and not yet received, by tag; each thread has its own."""

    def __init__(self) -> None:
        self.boxes: defaultdict[str, deque[Tensor]] = defaultdict(deque)


_MAILBOX = _Mailbox()


@torch.library.custom_op("fx_partition::send", mutates_args=())
def send(value: Tensor, peer: int, tag: str) -> None:
    """Send ``value`` to stage ``peer``, which receives it under ``tag``."""
    _MAILBOX.boxes[tag].append(value)


@torch.library.custom_op("fx_partition::recv", mutates_args=())
def recv(shape: list[int], dtype: torch.dtype, device: torch.device, peer: int, tag: str) -> Tensor:
    """Receive the tensor that stage ``peer`` sent under ``tag``, of ``shape`` and ``dtype``, on ``device``.

    Raises:
        RuntimeError: nothing was sent under this tag, or a tensor of another shape or dtype.
    """
    box = _MAILBOX.boxes[tag]
    if not box:
        raise RuntimeError(f"stage {peer} has sent nothing under {tag!r}: run the stages in order")
    value = box.popleft()
    if list(value.shape) != list(shape) or value.dtype != dtype:
        raise RuntimeError(f"{tag!r} is {list(value.shape)} {value.dtype}, expected {list(shape)} {dtype}")
    return value.to(device, copy=True)  # an operator must not return memory that others have


@recv.register_fake
def _(shape: list[int], dtype: torch.dtype, device: torch.device, peer: int, tag: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


SEND = torch.ops.fx_partition.send.default
RECV = torch.ops.fx_partition.recv.default
has_side_effect(SEND)  # a send returns nothing, and must not be removed as dead code
has_side_effect(RECV)  # each send needs its recv, whether or not the tensor is used
