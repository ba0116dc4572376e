"""How fast a device is, in the terms of the planner; `device_speed` has it for a record or a name.

A run of a partition takes::

    max(operations / peak, hits x bytes / on-chip bandwidth + misses x bytes / off-chip bandwidth) + call + kernels

where hits are the hit rate of the device's memory at the partition's footprint: each run of a stream touches all of it
once, so its bytes come back after as many others. Where arithmetic does not hide reads, the sum of the two stands for
the longer. What a partition receives takes a hop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


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
        slow = (1 - hits) / self.offchip if self.offchip else (0.0 if hits == 1 else math.inf)
        moving = touched * (hits / self.onchip + slow) if touched else 0.0
        computing = operations / self.peak
        busy = max(computing, moving) if self.overlap else computing + moving
        return busy + self.call + kernels * self.kernel

    def hop(self, size: int) -> float:
        """Seconds of a hop of ``size`` bytes."""
        return self.latency + (size / self.bandwidth if self.bandwidth else 0.0)
