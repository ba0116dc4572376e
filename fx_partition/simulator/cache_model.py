"""Follow what stays on chip from one run to the next, access by access, for two kinds of memory.

The hit rate of a touch is that of the device's hit curve at the distance of the touch (see `reuse_distance`).

Terms
-----
cache
    The memory of a GPU or a CPU, which evicts the least recently used data. A tensor that was made here and is fetched
    again was written back before. The caller's inputs are fetched and its results are written; over a shared link both
    travel without off-chip memory.
scratchpad
    The memory of an accelerator, which a compiler fills. As many whole weights as fit in addition to the activations,
    in the order of use, are loaded once and stay. The others are fetched in every run. The caller's inputs and results
    travel over the link.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import format_bytes
from fx_partition.hardware.records import Device
from fx_partition.passes.timing.partition_work import Access, AccessKind, Key, PartitionWork
from fx_partition.passes.timing.reuse_distance import ReuseStack


class Moved(NamedTuple):
    """The bytes that one run moves off chip.

    Attributes:
        missed: the touched bytes that on-chip memory does not serve.
        written_back: in addition, the bytes that were made on chip and evicted.
    """

    missed: float
    written_back: float = 0.0

    @property
    def bytes(self) -> float:
        """The bytes of both kinds."""
        return self.missed + self.written_back


class Residency(Protocol):
    """The on-chip memory of one device over time."""

    def run(self, work: PartitionWork, hopped: frozenset[Key]) -> Moved:
        """Return the bytes that one run moves off chip.

        Args:
            work: the partition that runs.
            hopped: received values that a link has just written into this memory.
        """

    def state(self) -> Hashable:
        """Return all that later runs depend on."""

    def restore(self, state: Any) -> None:
        """Restore a state returned by `state`."""


class Cache:
    """The memory of a GPU or a CPU; see the module's terms.

    Args:
        device: the device of the memory.
        shared: whether the caller's inputs and results travel over a shared link.
    """

    def __init__(self, device: Device, shared: bool = False) -> None:
        self._device, self._shared = device, shared
        self._stack = ReuseStack()
        self._dirty: set[Key] = set()

    def run(self, work: PartitionWork, hopped: frozenset[Key]) -> Moved:
        for key, size in _sizes(work.accesses, hopped):
            self._write(key, size)
        missed, written_back = zip((0.0, 0.0), *map(self._touch, work.accesses), strict=True)
        return Moved(sum(missed), sum(written_back))

    def _touch(self, access: Access) -> Moved:
        key, size, how = access
        match how:
            case AccessKind.ARRIVE if self._shared:
                self._write(key, size)
                return Moved(0.0)
            case AccessKind.WRITE:
                self._write(key, size)
                return Moved(0.0)
            case AccessKind.LEAVE:
                self._dirty.discard(key)
                return Moved(0.0 if self._shared else float(size))
        distance = self._stack.touch(key, size)
        if how is AccessKind.ARRIVE or distance is None:
            return Moved(float(size))
        missed = size * (1 - self._device.hit_rate(distance))
        if missed and key in self._dirty:
            self._dirty.discard(key)
            return Moved(missed, missed)
        return Moved(missed)

    def state(self) -> Hashable:
        return self._stack.order(), frozenset(self._dirty)

    def restore(self, state: Any) -> None:
        order, dirty = state
        self._stack.fill(order)
        self._dirty = set(dirty)

    def _write(self, key: Key, size: int) -> None:
        self._stack.touch(key, size)
        self._dirty.add(key)


class Scratchpad:
    """The memory of an accelerator; see the module's terms.

    Args:
        device: the device of the memory.
        works: the work of each partition that this device runs, in their order.
        activations: the most bytes of activations and scratch memory that one of them holds.

    Raises:
        PartitionError: something does not fit, and the device has no memory behind it.
    """

    def __init__(self, device: Device, works: Sequence[PartitionWork], activations: int) -> None:
        self._room = max(0, device.usable_bytes - activations)
        self._overflow = max(0, activations - device.usable_bytes) / activations if activations else 0.0
        self._loaded: set[Key] = set()
        self._held: set[Key] = set()
        weights = [access for work in works for access in work.accesses if access.how is AccessKind.WEIGHT]
        room = self._room
        for key, size in _sizes(weights, {access.key for access in weights}):
            if size <= room:
                self._held.add(key)
                room -= size
            elif not device.memory_bandwidth:
                self._refuse(device, size)
        if self._overflow and not device.memory_bandwidth:
            self._refuse(device, activations)

    def run(self, work: PartitionWork, hopped: frozenset[Key]) -> Moved:
        return Moved(sum(map(self._missed, work.accesses)))

    def state(self) -> Hashable:
        return frozenset(self._loaded)

    def restore(self, state: Any) -> None:
        self._loaded = set(state)

    def _missed(self, access: Access) -> float:
        if access.how is not AccessKind.WEIGHT:
            return access.bytes * self._overflow if access.how in (AccessKind.READ, AccessKind.WRITE) else 0.0
        if access.key in self._loaded:
            return 0.0
        if access.key in self._held:
            self._loaded.add(access.key)
        return float(access.bytes)

    def _refuse(self, device: Device, size: int) -> None:
        raise PartitionError(
            f"{device.name} has no memory behind its {format_bytes(device.usable_bytes)} on chip, and "
            f"{format_bytes(size)} of this plan do not fit: plan for its size, cache_bytes={device.usable_bytes}, with "
            f"as many devices as that needs"
        )


def residency(device: Device, works: Sequence[PartitionWork], activations: int, shared: bool = False) -> Residency:
    """Return the memory of a device before its first run; its two classes explain the arguments."""
    return Scratchpad(device, works, activations) if device.kind == "accelerator" else Cache(device, shared)


def _sizes(accesses: Iterable[Access], keys: Iterable[Key]) -> list[tuple[Key, int]]:
    """Return each key with the most bytes touched of it, in the order of the first touch."""
    wanted = set(keys)
    sizes: dict[Key, int] = {}
    for access in accesses:
        if access.key in wanted:
            sizes[access.key] = max(access.bytes, sizes.get(access.key, 0))
    return list(sizes.items())
