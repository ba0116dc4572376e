"""How fast a device is, in the terms of the planner; `device_speed` has it for a record or a name.

A run of a partition takes::

    max(operations / peak, hits / on-chip bandwidth + misses / off-chip bandwidth) + call + kernels

where hits and misses are bytes. Where arithmetic does not hide reads, the sum of the two replaces the longer. What a
partition receives takes a hop. Time objectives, simulations and microbatches all use this formula; they differ in how
they count hits and misses:

- time objectives take the hit rate of the device's memory at the partition's footprint: each run of a stream touches
  all of it once, so that is the distance of every touch (`reuse_distance`);
- simulations and microbatches follow each tensor, and know the distance of each touch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def busy(arithmetic: float, moving: float, overlap: bool) -> float:
    """Return the seconds of arithmetic and of moving bytes: the longer where they overlap, else their sum."""
    return max(arithmetic, moving) if overlap else arithmetic + moving


@dataclass(frozen=True)
class Roofline:
    """What one device and its link can do.

    Attributes:
        name: of the device, for people.
        peak: operations a second.
        onchip, offchip: bytes a second from its on-chip memory and from the one behind it; 0.0: there is none.
        hit_rate: the share of reads that on-chip memory serves, by the bytes of the working set; it never rises.
        call, kernel: seconds that a run takes beside its work, and each of its kernels.
        latency: seconds of a hop, whatever its bytes.
        bandwidth: bytes a second of a hop; None: as fast as can be.
        overlap: whether bytes move while operations go on, so that the longer of the two counts; else both do.
    """

    name: str
    peak: float
    onchip: float
    offchip: float
    hit_rate: Callable[[float], float]
    call: float = 0.0
    kernel: float = 0.0
    latency: float = 0.0
    bandwidth: float | None = None
    overlap: bool = True

    def run(self, operations: float, touched: float, kernels: int, footprint: int) -> float:
        """Seconds of a run.

        Args:
            operations: floating-point operations.
            touched: bytes that it reads and writes.
            kernels: how many.
            footprint: bytes that it holds. The time never falls when this or any of the others grows.
        """
        hits = self.hit_rate(footprint)
        return self.seconds(operations, touched * hits, touched * (1 - hits), kernels)

    def seconds(self, operations: float, hits: float, misses: float, kernels: int) -> float:
        """Return the seconds of a run.

        Args:
            operations: floating-point operations.
            hits: bytes that on-chip memory serves.
            misses: bytes from and to off-chip memory.
            kernels: the number of kernels.
        """
        slow = misses / self.offchip if self.offchip else (math.inf if misses else 0.0)
        return busy(operations / self.peak, hits / self.onchip + slow, self.overlap) + self.call + kernels * self.kernel

    def hop(self, size: int) -> float:
        """Seconds of a hop of ``size`` bytes."""
        return self.latency + (size / self.bandwidth if self.bandwidth else 0.0)
