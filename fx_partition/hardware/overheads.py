"""Fixed times of a device in addition to arithmetic and memory: of a call, of each kernel, and of a hop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .records import Device


@dataclass(frozen=True)
class Overheads:
    """Seconds that a run takes in addition to arithmetic and memory, and whether those two overlap.

    Attributes:
        call: seconds of a run.
        kernel: seconds of each operator that writes a result of its own, rather than only within a fused kernel.
        launch: seconds of each kernel that inductor launches, all that is fused into it included.
        fetch: seconds of a run that fetches anything from off-chip memory.
        overlap: whether bytes move while operations run, so that the longer of the two times counts; else their sum.
    """

    call: float = 0.0
    kernel: float = 0.0
    launch: float = 0.0
    fetch: float = 0.0
    overlap: bool = True


#: Overheads by kind of device. GPU: a kernel of a CUDA graph takes 1.26 us on an H200 (2.43 us on a stream), and what
#: inductor fuses is one kernel. CPU: the times of a call of a compiled stage from Python and of an operator that writes
#: a result; `batching.microbatch_cost` uses them too. A core packs or reorders operands before it computes with them,
#: and `benchmarks/cost_model.py` finds times that are closer to the sum than to the longer of the two. Accelerator: its
#: compiler makes one program of a partition; the time of a call is not known in general.
OVERHEADS: Mapping[str, Overheads] = {
    "gpu": Overheads(launch=1.26e-6),
    "cpu": Overheads(call=10e-6, kernel=2e-6, overlap=False),
    "accelerator": Overheads(),
}


@dataclass(frozen=True)
class Link:
    """A connection that carries values between devices.

    Attributes:
        latency: seconds of a hop, however few its bytes.
        bandwidth: bytes/s; None if bytes take no time.
        shared: whether one bus of the host carries everything, one after another: every hop, the caller's inputs and
            results, and the bytes that devices fetch from off-chip memory (USB, one PCIe lane). Else each device has
            its own link to the next, and hops overlap.
    """

    latency: float
    bandwidth: float | None = None
    shared: bool = False

    @classmethod
    def of(cls, device: Device) -> Link:
        """Return the link of a device's record."""
        return cls(device.link_latency, device.link_bandwidth)

    def seconds(self, size: int) -> float:
        """Return the seconds that a hop of ``size`` bytes takes."""
        return self.latency + (size / self.bandwidth if self.bandwidth else 0.0)
