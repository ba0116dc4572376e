"""Compute the time that one run of a partition takes on a device, by cause; `timing.roofline` has the formula.

Example: 6 MiB of weights for one row on an H100, all of it on chip: 6 MiB / 8.5 TB/s = 0.74 us, and one launch 1.26 us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fx_partition.hardware.overheads import Overheads
from fx_partition.hardware.records import Device
from fx_partition.passes.timing.partition_work import PartitionWork
from fx_partition.passes.timing.roofline import busy


@dataclass(frozen=True)
class Price:
    """Seconds of one run by cause; see `timing.roofline`.

    Attributes:
        arithmetic, onchip, offchip, overhead: the seconds of each cause; ``offchip`` includes the overhead of fetching.
        moved: the bytes that move off chip.
        overlap: see `Overheads`.
    """

    arithmetic: float
    onchip: float
    offchip: float
    overhead: float
    moved: float
    overlap: bool = True

    @property
    def seconds(self) -> float:
        return busy(self.arithmetic, self.onchip + self.offchip, self.overlap) + self.overhead

    @property
    def causes(self) -> dict[str, float]:
        """Return the seconds of "arithmetic", "on-chip", "off-chip" and "launch"; 0.0 for one that another hides."""
        moving = self.onchip + self.offchip > self.arithmetic
        return {
            "arithmetic": 0.0 if self.overlap and moving else self.arithmetic,
            "on-chip": 0.0 if self.overlap and not moving else self.onchip,
            "off-chip": 0.0 if self.overlap and not moving else self.offchip,
            "launch": self.overhead,
        }

    @property
    def bound(self) -> str:
        """The name of the largest cause."""
        return largest(self.causes)


def largest(causes: Mapping[str, float]) -> str:
    """Return the name of the largest cause; of equal ones the first."""
    return max(causes, key=lambda name: causes[name])


def price(device: Device, work: PartitionWork, moved: float, overheads: Overheads, written_back: float = 0.0) -> Price:
    """Return the price of one run.

    Args:
        device: the device of the run.
        work: the work of the partition.
        moved: the bytes that move off chip, from the device's `cache_model`.
        overheads: the overheads of a run on the device.
        written_back: the part of ``moved`` in addition to the bytes that the work touches.
    """
    offchip = moved / device.memory_bandwidth + overheads.fetch if moved and device.memory_bandwidth else 0.0
    return Price(
        arithmetic=work.flops / device.peak_flops,
        onchip=max(0.0, work.bytes - (moved - written_back)) / device.onchip_bandwidth,
        offchip=offchip,
        overhead=overheads.call + overheads.kernel * work.kernels + overheads.launch * work.launches,
        moved=moved,
        overlap=overheads.overlap,
    )
