"""What this machine has, as device records: its GPUs, then its CPU's caches.

    torch (CUDA, ROCm)  -> gpus          \\
    Linux               -> linux          > detect -> [Device, ...]
    macOS, Windows      -> other_systems /

A CPU is seen as a device twice: "cpu:L2", the cache of one core (or of the few that share it), and "cpu:L3", that of
all cores around it. What lies beyond the L2 is the L3, and ``memory_bandwidth`` of "cpu:L2" is the L3's. The first of
the two is the one that stages of a pipeline run on: the outermost that not all cores share.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from .bandwidth_sweep import Points, saved
from .cpu_info import Cache, CpuFacts
from .fit_hit_curve import fit
from .gpus import find_gpus, match_record
from .hit_curves import USABLE_SHARE
from .linux import linux_cpu
from .macos_windows import macos_cpu, unknown_cpu, windows_cpu
from .records import Device, Figure, from_figures

# Where a system does not say: a clock of servers, and an L2 that every CPU of the last ten years has.
_HERTZ, _L2 = 2.5e9, 256 * 2**10
# Float32 operations a cycle and core: two vector units that multiply and add; Arm's are of 128 bits.
_FLOPS_A_CYCLE, _FLOPS_OTHERWISE = {"AVX512": 64, "AVX2": 32}, 16
# Bytes a cycle and core that current servers read at least from L2, L3 and memory, all cores at once.
_L2_BYTES, _L3_BYTES, _MEMORY_BYTES = 32, 10, 2


def detect() -> list[Device]:
    """The devices of this machine, as this process may use them; never empty.

    A GPU whose name is that of a record has its figures. Otherwise sizes are those that the driver or the operating
    system reports, and bandwidths are estimates. Of a cache that other processes' cores share, the usable bytes are the
    share of the cores that this process may use. What `probe` has measured on this machine stands for all of these.

    Example::

        >>> [found.name for found in fx_partition.detect()]  # doctest: +SKIP
        ['cuda:0', 'cpu:L2', 'cpu:L3']
    """
    facts = cpu_facts()
    return [*find_gpus(), *_apple_gpu(facts), *cpu_devices(facts, saved(facts))]


def cpu_facts() -> CpuFacts:
    """What the operating system says of the CPU."""
    readers = {"linux": linux_cpu, "darwin": macos_cpu, "win32": windows_cpu}
    return readers.get(sys.platform, unknown_cpu)()


def _apple_gpu(facts: CpuFacts) -> list[Device]:
    """The GPU in an Apple chip that has a record; torch says nothing of its caches."""
    record = match_record(facts.name) if torch.backends.mps.is_available() else None
    return [] if record is None else [replace(record, name="mps", aliases=(facts.name, record.name))]


def cpu_devices(facts: CpuFacts, points: Points = ()) -> list[Device]:
    """A CPU's caches as devices, first the one that a stage has for itself; ``points`` are what a sweep measured."""
    if not facts.caches:
        unknown = Figure(_L2, "nothing is known of the caches: what CPUs of the last ten years have", "estimate")
        return [_cpu_device(facts, Cache(2, _L2, 1, 1, False), unknown, points)]
    caches = facts.by_preference()
    return [_cpu_device(facts, cache, Figure(cache.bytes, facts.source, "datasheet"), points) for cache in caches]


def _cpu_device(facts: CpuFacts, cache: Cache, size: Figure, points: Points) -> Device:
    cores = min(float(cache.cores), facts.cores)
    cycles = (facts.hertz or _HERTZ) * cores
    clock = f"{facts.hertz / 1e9:.2f} GHz, {facts.clock}" if facts.hertz else f"{_HERTZ / 1e9:.2f} GHz, assumed"
    share = USABLE_SHARE["cpu"] * cache.cores / cache.sharers
    why = f"{USABLE_SHARE['cpu']} of it, the rule of hit_curves; {cache.cores} of its {cache.sharers} cores"
    flops = _FLOPS_A_CYCLE.get(torch.backends.cpu.get_cpu_capability(), _FLOPS_OTHERWISE)
    inner, beyond = (_L2_BYTES, _L3_BYTES) if cache.level == 2 else (_L3_BYTES, _MEMORY_BYTES)
    figures = {
        "onchip_bytes": size,
        "usable_bytes": Figure(share * cache.bytes, why, "inferred"),
        "onchip_bandwidth": Figure(inner * cycles, f"{inner:g} bytes a cycle and core; {clock}", "estimate"),
        "memory_bandwidth": Figure(beyond * cycles, f"{beyond:g} bytes a cycle and core; {clock}", "estimate"),
        "peak_flops": Figure(flops * cycles, f"{flops} float32 operations a cycle and core; {clock}", "estimate"),
        "link_latency": Figure(0.24e-6, "a pointer to a waiting worker, benchmarks/hop.py on one Xeon", "estimate"),
    }
    if facts.memory_bytes is not None:
        figures["memory_bytes"] = Figure(facts.memory_bytes, facts.source, "datasheet")
    measured, curve = fit(points, cache.bytes, cores)
    aliases = (facts.name,) if facts.name else ()
    return from_figures(f"cpu:L{cache.level}", "cpu", {**figures, **measured}, curve=curve, aliases=aliases)
