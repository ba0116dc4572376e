"""The time of runs and hops on a device; `device_speed` makes a roofline from a record or a name.

A run of a partition takes::

    max(operations / peak, hits / on-chip bandwidth + misses / off-chip bandwidth) + call + kernels + launches

where hits and misses are bytes. Where arithmetic does not hide reads, the sum of the two replaces the longer. A hop is
the time in which a partition receives its values. Time objectives, simulations and microbatches all use this formula;
they differ in how they count hits and misses:

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
    """The speed of one device and of its link.

    Attributes:
        name: the name of the device, for reports.
        peak: operations/s.
        onchip, offchip: bytes/s from on-chip memory and from off-chip memory; 0.0 if there is none.
        hit_rate: returns the share of reads that on-chip memory serves, for the bytes of a working set; never rises.
        call, kernel, launch: seconds that each run, each operator that writes a result, and each kernel after fusion
            takes in addition to its work (see `hardware.overheads`).
        latency: seconds of a hop, however few its bytes.
        bandwidth: bytes/s of a hop; None if bytes take no time.
        overlap: whether bytes move while operations run, so that the longer of the two times counts; else their sum.
    """

    name: str
    peak: float
    onchip: float
    offchip: float
    hit_rate: Callable[[float], float]
    call: float = 0.0
    kernel: float = 0.0
    launch: float = 0.0
    latency: float = 0.0
    bandwidth: float | None = None
    overlap: bool = True

    def run(self, operations: float, touched: float, kernels: int, launches: int, footprint: int) -> float:
        """Return the seconds of a run; they never fall when an argument grows.

        Args:
            operations: floating-point operations.
            touched: bytes that it reads and writes.
            kernels, launches: as of `partition_work.PartitionWork`.
            footprint: bytes that it holds, which decide its hit rate.
        """
        hits = self.hit_rate(footprint)
        return self.seconds(operations, touched * hits, touched * (1 - hits), kernels, launches)

    def seconds(self, operations: float, hits: float, misses: float, kernels: int, launches: int) -> float:
        """Return the seconds of a run.

        Args:
            operations: floating-point operations.
            hits: bytes that on-chip memory serves.
            misses: bytes from and to off-chip memory.
            kernels, launches: as of `partition_work.PartitionWork`.
        """
        slow = misses / self.offchip if self.offchip else (math.inf if misses else 0.0)
        overhead = self.call + kernels * self.kernel + launches * self.launch
        return busy(operations / self.peak, hits / self.onchip + slow, self.overlap) + overhead

    def hop(self, size: int) -> float:
        """Return the seconds of a hop of ``size`` bytes."""
        return self.latency + (size / self.bandwidth if self.bandwidth else 0.0)
