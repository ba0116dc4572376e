"""What a device takes beside arithmetic and memory: for a run, for each kernel, and for a hop to another device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .records import Device


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
