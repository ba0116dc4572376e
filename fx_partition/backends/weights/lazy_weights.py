"""Weights that have not been read: each is bound to a tensor of a checkpoint, and `fill` reads it.

A hollow weight is a plain tensor: a tracer sees its sizes, strides, dtype and device. On the CPU it lies in the
checkpoint's mapped file. So whoever reads it, eager code or ``state_dict()``, reads the right values, page by page.
On another device it has no memory (its storage has 0 bytes, as FSDP's have between uses), and reading it is an error.

Before ``fill([weight])``: ``weight`` lies in the file's pages, or has no memory.
After: it has memory of its own with the same bits; pages of the file that were brought for it have been given back. It
is the same tensor, with the same version, so graphs, guards and copies that know it stay valid.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .mmap_file import give_back

# So much of a large weight is in memory twice while it is filled.
_CHUNK_BYTES = 4 << 20
# What a fingerprint reads at each end of a tensor.
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class _Source:
    """The tensor of the checkpoint; ``ours``: it lies in a file that was mapped here."""

    tensor: Tensor
    ours: bool


_SOURCES: Any = WeakIdKeyDictionary()
_LOCK = threading.Lock()


def _forget_lock() -> None:
    """In a forked child: a thread of the parent may have held it, and it is not there to let go."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def lies_in_file(device: torch.device) -> bool:
    """Whether a hollow weight on a device can be read, as it lies in the mapped file."""
    return device.type == "cpu"


def make_hollow(like: Tensor, source: Tensor, device: torch.device, *, ours: bool) -> Tensor:
    """A tensor for ``source`` that is not read yet; read at once where it cannot be left in the file.

    Args:
        like: tells sizes, strides, dtype, whether it is a parameter and whether it needs a gradient.
        source: of the same sizes and dtype.
        device: where it is to be.
        ours: whether ``source`` lies in a file that was mapped here.
    """
    if like.numel() == 1 or _lies_over_itself(like):  # a counter, for one, of which inference makes no use
        return make_read(like, source, device, ours=ours)
    if not lies_in_file(device):
        data = _empty(like, device)
        data.untyped_storage().resize_(0)
    elif source.device == device and _same_order(source, like):
        # .data, as a view would keep the file mapped after it has been read
        data = source.as_strided(like.shape, like.stride(), source.storage_offset()).data
    else:
        return make_read(like, source, device, ours=ours)
    made = _as_kind_of(like, data)
    if _is_unread(made, source):
        _SOURCES[made] = _Source(source, ours)
    return made


def make_read(like: Tensor, source: Tensor, device: torch.device, *, ours: bool) -> Tensor:
    """A tensor with memory of its own, read from ``source`` now; arguments as for `make_hollow`."""
    data = _empty(like, device)
    _copy(data, source, ours)
    return _as_kind_of(like, data)


def _as_kind_of(like: Tensor, data: Tensor) -> Tensor:
    if isinstance(like, torch.nn.Parameter):
        return torch.nn.Parameter(data, like.requires_grad)
    return data.requires_grad_(like.requires_grad)


def is_hollow(value: Any) -> bool:
    """Whether a value is a weight that has not been read from its checkpoint."""
    source = _SOURCES.get(value) if isinstance(value, Tensor) else None
    return source is not None and _is_unread(value, source.tensor)


def any_hollow() -> bool:
    """Whether any weight of this process may be hollow."""
    return len(_SOURCES) > 0


def fill(values: Iterable[Any]) -> None:
    """Read the hollow weights among ``values``, each once, bit by bit as in the checkpoint; the rest is left alone."""
    with _LOCK, torch.no_grad(), torch.inference_mode(False):
        for value in values:
            source = _SOURCES.get(value) if isinstance(value, Tensor) else None
            if source is None:
                continue
            if _is_unread(value, source.tensor):
                data = _empty(value, value.device)
                _copy(data, source.tensor, source.ours)
                value.data = data
            del _SOURCES[value]


def fills_first(function: Callable[..., Any], positions: Sequence[int]) -> Callable[..., Any]:
    """A compiled function that reads the weights which it is called with, where they are hollow.

    Dynamo calls the code of one model for another one of its class, whose weights nothing has read.

    Args:
        positions: which of its arguments are weights that it reads.
    """
    if not positions:
        return function
    known: list[weakref.ref[Tensor]] | None = None

    def run(*args: Any) -> Any:
        nonlocal known
        if any_hollow():
            weights = [args[position] for position in positions]
            if known is None or not all(ref() is weight for ref, weight in zip(known, weights, strict=True)):
                fill(weights)
                known = [weakref.ref(weight) for weight in weights]
        return function(*args)

    return run


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What tells checkpoints apart without reading them: equal for equal tensors, hollow or not, on any device.

    It samples: name, sizes, dtype and the first and last 4 KiB count, what is between them does not.

    Returns:
        For each name 32 hexadecimal digits.

    Example::

        >>> a, b = torch.zeros(4), torch.ones(4)
        >>> fingerprint({"weight": a}) == fingerprint({"weight": a.clone()}), fingerprint({"weight": b})
        (True, {'weight': '6b45dda24dc19bed49caec7d2df4a33d'})
    """
    return {name: _digest(name, tensor) for name, tensor in tensors.items()}


def equal_samples(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one fingerprint, were it not for their names."""
    return _digest("", one) == _digest("", other)


def _is_unread(tensor: Tensor, source: Tensor) -> bool:
    """Whether a weight is still what `make_hollow` made: ``model.to(...)`` gives it other memory, for one."""
    if not tensor.numel():
        return False
    return tensor.untyped_storage().nbytes() == 0 or tensor.data_ptr() == source.data_ptr()


def _empty(like: Tensor, device: torch.device) -> Tensor:
    if _lies_over_itself(like):  # nothing can be written into such memory
        return torch.empty(like.shape, dtype=like.dtype, device=device)
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)


def _lies_over_itself(tensor: Tensor) -> bool:
    """Whether ``expand`` made it."""
    return any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _same_order(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same sizes lie in memory alike; strides of dimensions of size 1 do not matter."""
    return one.stride() == other.stride() or (one.is_contiguous() and other.is_contiguous())


def _copy(target: Tensor, source: Tensor, ours: bool) -> None:
    """Piece by piece, so that no more than a piece is in memory twice."""
    if not (target.is_contiguous() and source.is_contiguous()):
        target.copy_(source)
        return
    target, source = target.view(-1), source.view(-1)
    step = _CHUNK_BYTES // source.element_size()
    for start in range(0, source.numel(), step):
        read = source[start : start + step]
        target[start : start + step].copy_(read)
        if ours:
            give_back(read)


def _digest(name: str, tensor: Tensor) -> str:
    if is_hollow(tensor):
        tensor = _SOURCES[tensor].tensor
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.numel():
        count = min(tensor.numel(), _SAMPLE_BYTES // tensor.element_size())
        for part in (_end(tensor.detach(), count, first=True), _end(tensor.detach(), count, first=False)):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _end(tensor: Tensor, count: int, *, first: bool) -> Tensor:
    """The first or last ``count`` numbers of a tensor in the order of its dimensions, copying no more than it must."""
    while tensor.dim() > 1 and tensor[0].numel() >= count:
        tensor = tensor[0 if first else -1]
    if tensor.dim() > 1:
        rows = -(-count // tensor[0].numel())
        tensor = tensor[:rows] if first else tensor[-rows:]
    flat = tensor.reshape(-1)
    return flat[:count] if first else flat[-count:]
