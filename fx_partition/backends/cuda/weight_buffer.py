"""The weights of a stage in one buffer, so that one window over it covers them all and their addresses never change.

A pack is a 1-D uint8 tensor. Each storage that the weights view has one *hull* in it: the bytes from the first to the
last that any of the weights reads, so weights that are tied or view each other stay so. Hulls start at multiples of
256 bytes, in the storage as in the buffer: a weight keeps its alignment, which compiled code relies on.

Before (two storages; ``b`` and ``c`` are views of the second)::

    a: float32 [3]  in 12 bytes           b: float16 [4], c: float16 [2, 2]  in 8 bytes

After (one storage of 264 bytes)::

    |0: a, 12 bytes|      |256: b and c, 8 bytes|

Nothing here knows a device: it is torch's ``copy_`` that moves the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.tensor_storage import span

from ..weights.device_copies import version_of

ALIGNMENT = 256  # what the caching allocator and cudaMalloc give the start of an allocation


@dataclass
class _Hull:
    """Bytes ``[start, stop)`` of a storage, which lie at ``offset`` of the buffer."""

    storage: torch.UntypedStorage
    start: int
    stop: int
    offset: int = 0

    def bytes(self) -> Tensor:
        return _view(self.storage, torch.uint8, self.start, (self.stop - self.start,), (1,))


class Pack:
    """Copies of ``weights`` in one buffer on ``device``.

    Args:
        weights: dense tensors on any device; the same one may come twice. They are kept, to see when they change.

    Attributes:
        buffer: uint8 of the packed bytes.
        tensors: for each weight, its values in the buffer, with its sizes, strides and dtype; they need no gradient.

    Raises:
        PartitionError: a weight without a storage of its own (sparse, or a wrapper of other tensors).

    Example::

        >>> tied = torch.nn.Linear(4, 4, bias=False).weight
        >>> pack = Pack([tied, tied.t()], torch.device("cpu"))
        >>> pack.buffer.numel(), pack.tensors[1].stride()
        (64, (1, 4))
    """

    def __init__(self, weights: Sequence[Tensor], device: torch.device) -> None:
        self._weights = list(weights)
        self._versions = [version_of(weight) for weight in weights]
        hulls: dict[int, _Hull] = {}
        self._hull_of = []
        for weight in weights:
            start, stop = _reach(weight)
            storage = weight.untyped_storage()
            hull = hulls.setdefault(id(storage), _Hull(storage, start, stop))
            hull.start, hull.stop = min(hull.start, start), max(hull.stop, stop)
            self._hull_of.append(hull)
        size = 0
        for hull in hulls.values():
            hull.start -= hull.start % ALIGNMENT
            hull.offset = -(-size // ALIGNMENT) * ALIGNMENT
            size = hull.offset + hull.stop - hull.start
        # What is made under inference mode could not be written outside it when a weight changes.
        with torch.inference_mode(False), torch.no_grad():
            self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
            for hull in hulls.values():
                self._copy(hull)
            self.tensors = tuple(
                _view(
                    self.buffer.untyped_storage(),
                    weight.dtype,
                    hull.offset - hull.start + int(weight.storage_offset()) * weight.element_size(),
                    weight.shape,
                    weight.stride(),
                )
                for weight, hull in zip(weights, self._hull_of, strict=True)
            )

    @property
    def stale(self) -> bool:
        """Whether a weight was written since it was copied, by torch's version counters."""
        return any(version_of(weight) != version for weight, version in zip(self._weights, self._versions, strict=True))

    def refresh(self) -> None:
        """Copy again, on the current stream, what was written since."""
        versions = [version_of(weight) for weight in self._weights]
        written = {
            id(hull): hull
            for hull, old, new in zip(self._hull_of, self._versions, versions, strict=True)
            if old != new
        }
        self._versions = versions
        with torch.inference_mode(False), torch.no_grad():
            for hull in written.values():
                self._copy(hull)

    def _copy(self, hull: _Hull) -> None:
        self.buffer[hull.offset : hull.offset + hull.stop - hull.start].copy_(hull.bytes())


def _reach(weight: Tensor) -> tuple[int, int]:
    """The bytes ``[start, stop)`` of its storage that a tensor reads."""
    if weight.layout != torch.strided or type(weight) not in (Tensor, torch.nn.Parameter):
        raise PartitionError(
            f"a weight of type {type(weight).__name__} and layout {weight.layout} cannot be packed for a stage on "
            f"another device; give the stages the model's own device, without an L2 persistence window"
        )
    start = int(weight.storage_offset())
    stop = start + span(weight.shape, weight.stride())
    return start * weight.element_size(), stop * weight.element_size()


def _view(
    storage: torch.UntypedStorage, dtype: torch.dtype, offset: int, size: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """A tensor of ``storage`` from byte ``offset``, which is a multiple of the element's size."""
    empty = torch.empty(0, dtype=dtype, device=storage.device)
    return empty.set_(storage, offset // empty.element_size(), tuple(size), tuple(stride))
