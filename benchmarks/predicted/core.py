"""Measure one core of this machine as a device: its record and overheads, by loops that are not models.

hit curve       a sweep of reads over working sets (`fx_partition.hardware.bandwidth_sweep`)
bandwidths      products of a matrix and a vector, as models read their weights: of a matrix that stays in the cache,
                and of one of several times its size
peak            a product of matrices that stay in the cache
call, kernel    compiled chains of layers of 16 KiB and activations: what one takes, and each further kernel, less
                their bytes
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from fx_partition import Device, Overheads
from fx_partition.hardware.bandwidth_sweep import sweep, working_sets
from fx_partition.hardware.cpu_info import CpuFacts
from fx_partition.hardware.detect import cpu_facts
from fx_partition.hardware.fit_hit_curve import fit
from fx_partition.hardware.overheads import OVERHEADS
from fx_partition.hardware.records import Figure, from_figures

_TURN_S = 0.05
_PRODUCT = (256, 512, 512)  # rows, columns, sum: 2 MiB in all
_DEPTHS = (2, 18)  # layers of a chain, each with an activation
_WIDTH = 64


@dataclass(frozen=True)
class Core:
    """The measured core."""

    device: Device
    overheads: Overheads


def measure_core(sweep_seconds: float) -> Core:
    """Measure the calling thread's core.

    Raises:
        ValueError: the system does not report the CPU's caches, or the sweep shows none.
    """
    cpu = cpu_facts()
    if not cpu.caches:
        raise ValueError("this system does not report its CPU's caches")
    device = _device(cpu, sweep_seconds)
    return Core(device, _overheads(device.onchip_bandwidth))


def _device(cpu: CpuFacts, sweep_seconds: float) -> Device:
    outermost = max(cache.bytes for cache in cpu.caches)
    figures, curve = fit(sweep(working_sets(cpu), sweep_seconds), outermost, cores=1)
    own = "benchmarks/cost_model.py"
    if "memory_bandwidth" not in figures:
        raise ValueError(f"the sweep does not reach beyond the cache of {outermost} bytes; run it on an idle machine")
    usable = int(figures["usable_bytes"].value) if "usable_bytes" in figures else outermost // 2
    figures |= {
        "onchip_bandwidth": Figure(_product_with_vector(usable // 2), own, "measured"),
        "memory_bandwidth": Figure(_product_with_vector(4 * outermost), own, "measured"),
        "onchip_bytes": Figure(outermost, "sysfs", "measured"),
        "peak_flops": Figure(_peak(), own, "measured"),
        "link_latency": Figure(0.0, own, "measured"),
    }
    return from_figures("one core", "cpu", figures, curve=curve)


def _product_with_vector(size: int) -> float:
    """Return the bytes/s of reading a square matrix of this many bytes."""
    width = int((size / 4) ** 0.5)
    matrix, vector = torch.ones(width, width), torch.ones(width)
    return 4 * width * width / median_seconds(lambda: torch.mv(matrix, vector))


def _peak() -> float:
    """Return the FLOP/s of a product that stays in the cache."""
    rows, columns, inner = _PRODUCT
    x, weight = torch.randn(rows, inner), torch.randn(columns, inner)
    return 2 * rows * columns * inner / median_seconds(lambda: nn.functional.linear(x, weight))


def _overheads(bandwidth: float) -> Overheads:
    """Return the seconds of a call and of a kernel; the layers' bytes are on chip."""
    few, many = (_seconds_of_chain(depth) - depth * 4 * _WIDTH**2 / bandwidth for depth in _DEPTHS)
    kernel = max(0.0, (many - few) / (2 * (_DEPTHS[1] - _DEPTHS[0])))
    return replace(OVERHEADS["cpu"], call=max(0.0, few - 2 * _DEPTHS[0] * kernel), kernel=kernel)


def _seconds_of_chain(depth: int) -> float:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(_WIDTH, _WIDTH), nn.ReLU())]
    torch.compiler.reset()
    chain = torch.compile(nn.Sequential(*layers).eval())
    x = torch.ones(1, _WIDTH)
    return median_seconds(lambda: chain(x))


def median_seconds(function: Callable[[], object], turns: int = 7) -> float:
    """Seconds of a call: the median over turns of at least `_TURN_S`, warm; those of the thread, as others run too."""
    function()
    start = time.thread_time()
    function()
    count = max(1, round(_TURN_S / (time.thread_time() - start)))
    found = []
    for _ in range(turns):
        start = time.thread_time()
        for _ in range(count):
            function()
        found.append((time.thread_time() - start) / count)
    return statistics.median(found)
