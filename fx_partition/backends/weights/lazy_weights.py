"""Lazy weights: each is bound to a tensor of a checkpoint, and `materialize` reads it.

A lazy weight is a plain tensor: a tracer sees its sizes, strides, dtype and device. On the CPU it is a view of the
mapped file of the checkpoint, so eager code and ``state_dict()`` read the right values, page by page. On another device
it has no memory (its storage has 0 bytes, as FSDP's have between uses), and reading it is an error.

Before ``materialize([weight])``: ``weight`` is a view of the file, or has no memory.
After: it has memory of its own with the same bits, and the pages of the file that were loaded for it are released. It
is the same tensor, with the same version, so graphs, guards and copies that refer to it stay valid.

`read_into` reads a weight straight into other memory, such as that of a stage on another device, and leaves the weight
lazy.
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

from fx_partition.passes.capture.tensor_subclasses import is_subclass, plain_tensors

from .mmap_file import give_back

# The part of a large weight that is in memory twice while the weight is read.
_CHUNK_BYTES = 4 << 20
# The bytes that a fingerprint reads at each end of a tensor.
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class _Source:
    """The tensor of the checkpoint; ``ours``: it is a view of a file that was mapped here."""

    tensor: Tensor
    ours: bool


_SOURCES: Any = WeakIdKeyDictionary()
_LOCK = threading.Lock()


def _forget_lock() -> None:
    """Make a new lock in a forked child: a thread of the parent, which the child lacks, may have held the old one."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def stays_in_file(device: torch.device) -> bool:
    """Return whether lazy weights on a device are views of the mapped file, which can be read."""
    return device.type == "cpu"


def make_lazy(like: Tensor, source: Tensor, device: torch.device, *, ours: bool) -> Tensor:
    """Return a lazy weight for ``source``, or read it at once where it cannot be lazy.

    Args:
        like: a tensor of the sizes, strides and dtype of the weight; a parameter where the weight is to be one.
        source: the tensor of the checkpoint, of the same sizes and dtype.
        device: the device of the weight.
        ours: whether ``source`` is a view of a file that was mapped here.
    """
    if like.numel() == 1 or _has_overlapping_memory(like):  # such as a counter, which inference does not read
        return make_read(like, source, device, ours=ours)
    if not stays_in_file(device):
        data = _empty(like, device)
        data.untyped_storage().resize_(0)
    elif source.device == device and _same_order(source, like):
        # .data, as a view would keep the file mapped after the weight was read
        data = source.as_strided(like.shape, like.stride(), source.storage_offset()).data
    else:
        return make_read(like, source, device, ours=ours)
    made = _as_kind_of(like, data)
    if _is_unread(made, source):
        _SOURCES[made] = _Source(source, ours)
    return made


def make_read(like: Tensor, source: Tensor, device: torch.device, *, ours: bool) -> Tensor:
    """Return a tensor with memory of its own, read from ``source`` now; arguments as for `make_lazy`."""
    data = _empty(like, device)
    _copy(data, source, ours)
    return _as_kind_of(like, data)


def _as_kind_of(like: Tensor, data: Tensor) -> Tensor:
    if isinstance(like, torch.nn.Parameter):
        return torch.nn.Parameter(data, like.requires_grad)
    return data.requires_grad_(like.requires_grad)


def is_lazy(value: Any) -> bool:
    """Return whether a value is a weight that has not been read from its checkpoint."""
    source = _SOURCES.get(value) if isinstance(value, Tensor) else None
    return source is not None and _is_unread(value, source.tensor)


def any_lazy() -> bool:
    """Return whether any weight of this process may be lazy."""
    return len(_SOURCES) > 0


def materialize(values: Iterable[Any]) -> None:
    """Read the lazy weights among ``values``, each once, with the bits of the checkpoint; leave other values alone."""
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


def read_into(target: Tensor, value: Tensor) -> None:
    """Write the values of a weight into a tensor of its sizes and dtype; those of a lazy weight from its checkpoint.

    The weight itself stays as it is, lazy or not.
    """
    source = _SOURCES.get(value) if is_lazy(value) else None
    with torch.no_grad(), torch.inference_mode(False):
        if source is None:
            target.copy_(value)
        else:
            _copy(target, source.tensor, source.ours)


def give_memory(value: Tensor, memory: Tensor) -> None:
    """Let a weight have the memory of another tensor from now on, on any device; it is no longer lazy.

    It is the same tensor with the same version, as after ``model.to(...)``; views of its former memory are not moved.
    """
    with torch.no_grad():
        value.data = memory
    with _LOCK:
        _SOURCES.pop(value, None)


def materialize_on_first_call(function: Callable[..., Any], positions: Sequence[int]) -> Callable[..., Any]:
    """Return a function that reads the lazy weights among its arguments, then calls ``function``.

    Dynamo calls the code of one model for another model of its class, whose weights may still be lazy.

    Args:
        positions: the positions of the arguments that are weights.
    """
    if not positions:
        return function
    known: list[weakref.ref[Tensor]] | None = None

    def run(*args: Any) -> Any:
        nonlocal known
        if any_lazy():
            weights = [args[position] for position in positions]
            if known is None or not all(ref() is weight for ref, weight in zip(known, weights, strict=True)):
                materialize(weights)
                known = [weakref.ref(weight) for weight in weights]
        return function(*args)

    return run


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a digest of each tensor that tells checkpoints apart: equal for equal tensors, lazy or not, on any device.

    Only a sample is read: the digest is of the name, the sizes, the dtype, and the first and the last 4 KiB. Of a
    tensor subclass it is also of the class, and of the sizes, the dtype and the ends of each tensor that it holds.

    Returns:
        For each name 32 hexadecimal digits.

    Example::

        >>> a, b = torch.zeros(4), torch.ones(4)
        >>> fingerprint({"weight": a}) == fingerprint({"weight": a.clone()}), fingerprint({"weight": b})
        (True, {'weight': '6b45dda24dc19bed49caec7d2df4a33d'})
    """
    return {name: _digest(name, tensor) for name, tensor in tensors.items()}


def equal_samples(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same fingerprint, apart from their names."""
    return _digest("", one) == _digest("", other)


def _is_unread(tensor: Tensor, source: Tensor) -> bool:
    """Return whether a weight is as `make_lazy` made it; ``model.to(...)``, for example, gives it other memory."""
    if not tensor.numel():
        return False
    return tensor.untyped_storage().nbytes() == 0 or tensor.data_ptr() == source.data_ptr()


def _empty(like: Tensor, device: torch.device) -> Tensor:
    if _has_overlapping_memory(like):  # nothing can be written into such memory
        return torch.empty(like.shape, dtype=like.dtype, device=device)
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)


def _has_overlapping_memory(tensor: Tensor) -> bool:
    """Return whether several elements have one address, as in a tensor that ``expand`` made."""
    return any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _same_order(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of the same sizes have the same elements at the same places in memory."""
    return one.stride() == other.stride() or (one.is_contiguous() and other.is_contiguous())


def _copy(target: Tensor, source: Tensor, ours: bool) -> None:
    """Copy piece by piece, so that no more than a piece is in memory twice."""
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
    if is_lazy(tensor):
        tensor = _SOURCES[tensor].tensor
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    plain_parts = plain_tensors(tensor.detach())
    if is_subclass(tensor):  # kinds of quantised weights may hold the same bytes, and mean other numbers by them
        held = [(plain.dtype, tuple(plain.shape)) for plain in plain_parts]
        digest.update(f"{type(tensor).__module__}.{type(tensor).__qualname__} {held}".encode())
    for plain in filter(Tensor.numel, plain_parts):
        count = min(plain.numel(), _SAMPLE_BYTES // plain.element_size())
        for part in (_end(plain, count, first=True), _end(plain, count, first=False)):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _end(tensor: Tensor, count: int, *, first: bool) -> Tensor:
    """Return the first or last ``count`` numbers in the order of the dimensions, with the least copying."""
    while tensor.dim() > 1 and tensor[0].numel() >= count:
        tensor = tensor[0 if first else -1]
    if tensor.dim() > 1:
        rows = -(-count // tensor[0].numel())
        tensor = tensor[:rows] if first else tensor[-rows:]
    flat = tensor.reshape(-1)
    return flat[:count] if first else flat[-count:]
