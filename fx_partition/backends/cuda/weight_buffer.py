"""Pack the weights of a stage in one buffer, so that one window covers them all and their addresses never change.

A pack is a 1-D uint8 tensor. It has one *block* for each storage that the weights view: the bytes from the first to the
last that any of the weights reads, so weights that are tied or view each other stay so. Blocks start at multiples of
256 bytes, in the storage as in the buffer: a weight keeps its alignment, which compiled code relies on.

Before (two storages; ``b`` and ``c`` are views of the second)::

    a: float32 [3]  in 12 bytes           b: float16 [4], c: float16 [2, 2]  in 8 bytes

After (one storage of 264 bytes)::

    |0: a, 12 bytes|      |256: b and c, 8 bytes|

A lazy weight is read from its checkpoint straight into the buffer, and stays lazy.

Nothing here is specific to a device: torch's ``copy_`` moves the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.tensor_storage import span

from ..weights.device_copies import WriteWatch, version_of
from ..weights.lazy_weights import is_lazy, read_into

ALIGNMENT = 256  # the alignment of allocations by cudaMalloc and the caching allocator


@dataclass
class _Block:
    """The bytes ``[start, stop)`` of a storage; their copy starts at ``offset`` in the buffer.

    ``lazy``: the weight is lazy, so its values are in a checkpoint, and no other weight shares the block.
    """

    storage: torch.UntypedStorage
    start: int
    stop: int
    lazy: bool
    offset: int = 0

    def bytes(self) -> Tensor:
        return _view(self.storage, torch.uint8, self.start, (self.stop - self.start,), (1,))


class Pack:
    """Copies of ``weights`` in one buffer on ``device``.

    Args:
        weights: dense tensors on any device, lazy or not; a tensor may occur twice. They are kept, to notice when they
            change, until `forget`.

    Attributes:
        buffer: the packed bytes, as uint8.
        tensors: for each weight a view of the buffer, with its sizes, strides and dtype; it requires no gradient.

    Raises:
        PartitionError: a weight has no storage of its own: it is sparse, or it wraps other tensors.

    Example::

        >>> tied = torch.nn.Linear(4, 4, bias=False).weight
        >>> pack = Pack([tied, tied.t()], torch.device("cpu"))
        >>> pack.buffer.numel(), pack.tensors[1].stride()
        (64, (1, 4))
    """

    def __init__(self, weights: Sequence[Tensor], device: torch.device) -> None:
        blocks: dict[int, _Block] = {}
        block_of = []
        for weight in weights:
            start, stop = _byte_range(weight)
            storage, lazy = weight.untyped_storage(), is_lazy(weight)
            block = blocks.setdefault(id(weight) if lazy else id(storage), _Block(storage, start, stop, lazy))
            block.start, block.stop = min(block.start, start), max(block.stop, stop)
            block_of.append(block)
        size = 0
        for block in blocks.values():
            block.start -= block.start % ALIGNMENT
            block.offset = -(-size // ALIGNMENT) * ALIGNMENT
            size = block.offset + block.stop - block.start
        self._sources = {i: (weight, block) for i, (weight, block) in enumerate(zip(weights, block_of, strict=True))}
        # A buffer that is made under inference mode could not be written outside it when a weight changes.
        with torch.inference_mode(False), torch.no_grad():
            self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
            self.tensors = tuple(
                _view(
                    self.buffer.untyped_storage(),
                    weight.dtype,
                    block.offset - block.start + int(weight.storage_offset()) * weight.element_size(),
                    weight.shape,
                    weight.stride(),
                )
                for weight, block in self._sources.values()
            )
        self._versions: dict[int, int] = {}
        self._watch = WriteWatch(weights)
        self.refresh()

    @property
    def stale(self) -> bool:
        """Whether a weight was written after it was copied, by torch's version counters."""
        return self._watch.written

    def refresh(self) -> None:
        """Copy the weights that were written since the last copy again, on the current stream."""
        self._watch.see()
        versions = {i: version_of(weight) for i, (weight, _) in self._sources.items()}
        copied: set[int] = set()
        with torch.inference_mode(False), torch.no_grad():
            for i, (weight, block) in self._sources.items():
                if self._versions.get(i) == versions[i] or id(block) in copied:
                    continue
                copied.add(id(block))
                if block.lazy:
                    read_into(self.tensors[i], weight)
                else:
                    self.buffer[block.offset : block.offset + block.stop - block.start].copy_(block.bytes())
        self._versions = versions

    def forget(self, positions: Iterable[int]) -> None:
        """Drop the weights at these positions, so that their memory can be freed; the pack follows them no longer."""
        for i in positions:
            del self._sources[i], self._versions[i]
        self._watch = WriteWatch(weight for weight, _ in self._sources.values())


def _byte_range(weight: Tensor) -> tuple[int, int]:
    """Return the bytes ``[start, stop)`` of its storage that a tensor reads."""
    if weight.layout != torch.strided or type(weight) not in (Tensor, torch.nn.Parameter):
        raise PartitionError(
            f"a weight of type {type(weight).__name__} and layout {weight.layout} cannot be packed for a stage on "
            "another device; run the stages on the model's own device, with l2_persistence=False"
        )
    start = int(weight.storage_offset())
    stop = start + span(weight.shape, weight.stride())
    return start * weight.element_size(), stop * weight.element_size()


def _view(
    storage: torch.UntypedStorage, dtype: torch.dtype, offset: int, size: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Return a tensor of ``storage`` at byte ``offset``, a multiple of the element's size."""
    empty = torch.empty(0, dtype=dtype, device=storage.device)
    return empty.set_(storage, offset // empty.element_size(), tuple(size), tuple(stride))
