"""Where weights in a GPU's L2 pay, by arithmetic on the records of devices. Nothing is measured here.

    python examples/where_gpus_pay.py

A stage takes max(operations / peak, bytes / bandwidth) + kernels x gap, as `fx_partition.simulate` has it. Its weights
are bf16 and are read once for all rows; activations count in the last section only. docs/where_it_pays.md explains the
figures.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tabulate import tabulate

from fx_partition import Device, device
from fx_partition.hardware.overheads import OVERHEADS

GPUS = ("A100-SXM-80", "H100-PCIe", "H200", "B200", "L40S", "MI300X")
STAGE = 43 * 2**20  # the bytes of a stage: what an H200 holds
GAP = 1e-6  # seconds between two kernels of a CUDA graph
LAUNCH = OVERHEADS["gpu"].launch  # what the planner counts
KERNELS = (1, 2, 4, 8, 16, 24, 48)


@dataclass(frozen=True)
class Gpu:
    """Bandwidths in bytes/s, on chip and of memory, and the peak in FLOP/s."""

    onchip: float
    memory: float
    peak: float

    def seconds(self, size: float, rows: int, kernels: int, gap: float, *, resident: bool) -> float:
        """Return the seconds of products of ``rows`` rows with ``size`` bytes of bf16 weights."""
        reading = size / (self.onchip if resident else self.memory)
        return max(rows * size / self.peak, reading) + kernels * gap  # 2 operations for each weight of 2 bytes

    def gain(self, kernels: int, gap: float, rows: int = 1, size: float = STAGE) -> float:
        """Return how many times faster a stage is resident than from memory."""
        stage = [self.seconds(size, rows, kernels, gap, resident=resident) for resident in (False, True)]
        return stage[0] / stage[1]


def gpu_of(record: Device) -> Gpu:
    """Return the figures of a record that the planner uses."""
    return Gpu(record.onchip_bandwidth, record.memory_bandwidth, record.peak_flops)


def measured(record: Device) -> Gpu:
    """Return the figures of an H200 as torch reaches them: a copy, and a product of random matrices."""
    figures = record.figures
    return Gpu(record.onchip_bandwidth, figures["memory_bandwidth.copy"].value, figures["peak_flops.product"].value)


H200 = device("H200")
BY_RECORD, BY_TORCH = gpu_of(H200), measured(H200)


def ceilings() -> str:
    """Return the most that weights on chip can gain: the on-chip bandwidth over that of memory."""
    rows = []
    for name in GPUS:
        record, gpu = device(name), gpu_of(device(name))
        rows.append(
            (name, f"{record.usable_bytes / 2**20:.0f}", f"{gpu.onchip / 1e9:,.0f}", f"{gpu.memory / 1e9:,.0f}",
             f"{gpu.onchip / gpu.memory:.1f}", record.figures["onchip_bandwidth"].confidence)
        )  # fmt: skip
    low, high = (gpu.onchip / gpu.memory for gpu in (BY_TORCH, BY_RECORD))
    return "\n".join(
        (
            "The ceiling: a stage that does nothing but read its weights",
            _table(rows, ("GPU", "usable MiB", "on chip, GB/s", "memory, GB/s", "ceiling", "on chip is")),
            f"H200: {low:.1f} to {high:.1f}, with memory at {BY_TORCH.memory / 1e9:,.0f} GB/s (a copy by torch) or "
            f"{BY_RECORD.memory / 1e9:,.0f} GB/s (a reading kernel).",
        )
    )


def gaps() -> str:
    """Return what the gaps between kernels leave of it, for a stage of 43 MiB on an H200."""
    ways = ((BY_TORCH, GAP), (BY_RECORD, GAP), (BY_RECORD, LAUNCH))
    rows = [(str(count), *(f"{gpu.gain(count, gap):.1f}" for gpu, gap in ways)) for count in KERNELS]
    headers = ("kernels", *(f"{gap * 1e6:g} us, {gpu.memory / 1e9:,.0f} GB/s" for gpu, gap in ways))
    return "\n".join(
        (
            f"The gaps: how many times faster {STAGE >> 20} MiB are from L2 than from memory (H200, one row)",
            _table(rows, headers),
            "The last column is what the planner's time objectives and the simulator count.",
        )
    )


def rows_that_hide_it() -> str:
    """Return the number of rows from which on arithmetic takes longer than reading."""
    lines = ["The rows: the gain of a stage of 43 MiB and 8 kernels by rows of a request (H200)"]
    counts = (1, 16, 64, 96, 128, 160, 192)
    gains = [(str(rows), f"{BY_TORCH.gain(8, GAP, rows):.2f}") for rows in counts]
    lines.append(_table(gains, ("rows", "gain")))
    first, last = BY_TORCH.peak / BY_TORCH.onchip, BY_TORCH.peak / BY_TORCH.memory
    lines.append(
        f"From {first:.0f} rows on arithmetic takes longer than reading from L2, and from {last:.0f} on longer than "
        f"reading from memory\n(at {BY_TORCH.peak / 1e12:.0f} TFLOP/s, a product by torch)."
    )
    return "\n".join(lines)


def one_gpu() -> str:
    """Return five stages on one GPU: requests one after another, in a batch, and stage by stage as microbatches."""
    table = []
    for requests, rows in ((4, 1), (16, 1), (4, 16), (16, 16), (64, 16)):
        slow, fast = (BY_TORCH.seconds(STAGE, rows, 8, GAP, resident=resident) for resident in (False, True))
        alone = 5 * requests * slow
        major = 5 * (slow + (requests - 1) * fast)
        batch = 5 * BY_TORCH.seconds(STAGE, requests * rows, 8, GAP, resident=False)
        table.append((str(requests), str(rows), *(f"{1e6 * seconds:,.0f}" for seconds in (alone, major, batch))))
    return "\n".join(
        (
            "One GPU: five stages of 43 MiB and 8 kernels, microseconds for all requests (H200)",
            _table(table, ("requests", "rows each", "one by one", "stage by stage", "one batch")),
            _chain(),
        )
    )


def _chain() -> str:
    """Return what microbatches gain for a chain of kernels that read and write activations, which do not fuse."""
    kernels, parts, size = 8, 8, 172 * 2**20
    once = 2 * size / BY_TORCH.memory
    whole = kernels * (once + GAP)
    cut = once + (kernels - 1) * 2 * size / BY_TORCH.onchip + kernels * parts * GAP
    return (
        f"A chain of {kernels} kernels that read and write {size >> 20} MiB: {1e6 * whole:.0f} us, in {parts} parts "
        f"that stay in L2 {1e6 * cut:.0f} us:\nin parts it is {whole / cut:.1f} times as fast."
    )


def _table(rows: list[tuple[str, ...]], headers: tuple[str, ...]) -> str:
    return tabulate(rows, headers, disable_numparse=True, stralign="right")


def main() -> int:
    print("\n\n".join(section() for section in (ceilings, gaps, rows_that_hide_it, one_gpu)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
