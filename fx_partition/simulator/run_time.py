"""The time that one run of a partition takes on a device.

    max(operations / peak, hits / on-chip bandwidth + misses / off-chip bandwidth) + overheads

On a CPU the two add up, see `OVERHEADS`.

Example: 6 MiB of weights for one row on an H100, all of it on chip: 6 MiB / 8.5 TB/s = 0.74 us, and one kernel 1.26 us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fx_partition.hardware.records import Device
from fx_partition.passes.timing.partition_work import PartitionWork


@dataclass(frozen=True)
class Overheads:
    """What a run takes beside arithmetic and memory, in seconds, and whether these hide one another.

    Attributes:
        call: of a run.
        kernel: of each kernel.
        fetch: of a run that fetches anything from off-chip memory.
        overlap: whether bytes move while operations go on, so that the longer of the two counts; else both do.
    """

    call: float = 0.0
    kernel: float = 0.0
    fetch: float = 0.0
    overlap: bool = True


#: By the kind of a device. GPU: a kernel of a CUDA graph takes 1.26 us on an H200 (2.43 us on a stream). CPU: a call of
#: a compiled stage from Python and a kernel of inductor's, as `batching.microbatch_cost` weighs them; one core packs or
#: reorders operands before it computes with them, and `benchmarks/cost_model.py` finds times closer to the sum than to
#: the longer. Accelerator: its compiler makes one program of a partition; what the call of one takes is not known in
#: general.
OVERHEADS: Mapping[str, Overheads] = {
    "gpu": Overheads(kernel=1.26e-6),
    "cpu": Overheads(call=10e-6, kernel=2e-6, overlap=False),
    "accelerator": Overheads(),
}


@dataclass(frozen=True)
class Link:
    """What carries values between devices.

    Attributes:
        latency: seconds of a hop, whatever its bytes.
        bandwidth: bytes/s; None: as fast as can be.
        shared: whether all devices hang on one host, whose bus carries every hop, the caller's inputs and results and
            what devices fetch from off-chip memory, one after another (USB, one PCIe lane); else each device has a link
            of its own to the next, and hops overlap.
    """

    latency: float
    bandwidth: float | None = None
    shared: bool = False

    @classmethod
    def of(cls, device: Device) -> Link:
        """The link of a device's record."""
        return cls(device.link_latency, device.link_bandwidth)

    def seconds(self, size: int) -> float:
        """Of a hop of ``size`` bytes."""
        return self.latency + (size / self.bandwidth if self.bandwidth else 0.0)


@dataclass(frozen=True)
class Price:
    """Seconds of one run by cause; see the module's formula.

    Attributes:
        arithmetic, onchip, offchip, overhead: of each cause; ``offchip`` has the overhead of fetching in it.
        moved: bytes off chip.
        overlap: as of `Overheads`.
    """

    arithmetic: float
    onchip: float
    offchip: float
    overhead: float
    moved: float
    overlap: bool = True

    @property
    def seconds(self) -> float:
        moving = self.onchip + self.offchip
        busy = max(self.arithmetic, moving) if self.overlap else self.arithmetic + moving
        return busy + self.overhead

    @property
    def causes(self) -> dict[str, float]:
        """Seconds of "arithmetic", "on-chip", "off-chip" and "launch"; 0.0 for one that another hides."""
        moving = self.onchip + self.offchip > self.arithmetic
        return {
            "arithmetic": 0.0 if self.overlap and moving else self.arithmetic,
            "on-chip": 0.0 if self.overlap and not moving else self.onchip,
            "off-chip": 0.0 if self.overlap and not moving else self.offchip,
            "launch": self.overhead,
        }

    @property
    def bound(self) -> str:
        """The largest cause."""
        return largest(self.causes)


def largest(causes: Mapping[str, float]) -> str:
    """The name of the largest; of equal ones the first."""
    return max(causes, key=lambda name: causes[name])


def price(device: Device, work: PartitionWork, moved: float, overheads: Overheads, written_back: float = 0.0) -> Price:
    """What one run takes.

    Args:
        device: where it runs.
        work: of the partition.
        moved: bytes off chip, as the device's `cache_model` says.
        overheads: of a run on it.
        written_back: what of ``moved`` lies beyond the bytes that the work touches.
    """
    offchip = moved / device.memory_bandwidth + overheads.fetch if moved and device.memory_bandwidth else 0.0
    return Price(
        arithmetic=work.flops / device.peak_flops,
        onchip=max(0.0, work.bytes - (moved - written_back)) / device.onchip_bandwidth,
        offchip=offchip,
        overhead=overheads.call + overheads.kernel * work.kernels,
        moved=moved,
        overlap=overheads.overlap,
    )
