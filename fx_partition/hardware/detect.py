"""Find this machine's devices: its GPUs, then its CPU's caches, each as a device record.

    torch (CUDA, ROCm)  -> gpus          \\
    Linux               -> linux          > detect -> [Device, ...]
    macOS, Windows      -> macos_windows /

A CPU is two devices: "cpu:L2", the cache of one core (or of the few that share it), and "cpu:L3", the cache of all
cores around it. A miss in the L2 goes to the L3, so ``memory_bandwidth`` of "cpu:L2" is the L3's. The first device in
the list is the one that stages of a pipeline use: the outermost cache that not all cores share.
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

# Assumed where a system does not say: a server's clock, and the L2 that every CPU of the last ten years has at least.
_HERTZ, _L2 = 2.5e9, 256 * 2**10
# Float32 operations a cycle and core: two vector units that multiply and add; those of Arm have 128 bits.
_FLOPS_A_CYCLE, _FLOPS_OTHERWISE = {"AVX512": 64, "AVX2": 32}, 16
# The fewest bytes a cycle and core that current servers read from L2, L3 and memory, with all cores at work.
_L2_BYTES, _L3_BYTES, _MEMORY_BYTES = 32, 10, 2


def detect() -> list[Device]:
    """Return the devices of this machine, as this process may use them; at least one.

    A GPU whose name matches a record has the record's figures. Otherwise the driver or the operating system reports
    the sizes, and the bandwidths are estimates. If this process may use only some of the cores that share a cache, its
    usable bytes are their share. A measurement by `probe` on this machine replaces all of these.

    Example::

        >>> [found.name for found in fx_partition.detect()]  # doctest: +SKIP
        ['cuda:0', 'cpu:L2', 'cpu:L3']
    """
    facts = cpu_facts()
    return [*find_gpus(), *_apple_gpu(facts), *cpu_devices(facts, saved(facts))]


def cpu_facts() -> CpuFacts:
    """Ask the operating system about the CPU."""
    readers = {"linux": linux_cpu, "darwin": macos_cpu, "win32": windows_cpu}
    return readers.get(sys.platform, unknown_cpu)()


def _apple_gpu(facts: CpuFacts) -> list[Device]:
    """Return the GPU of an Apple chip that has a record, if any; torch does not report its caches."""
    record = match_record(facts.name) if torch.backends.mps.is_available() else None
    return [] if record is None else [replace(record, name="mps", aliases=(facts.name, record.name))]


def cpu_devices(facts: CpuFacts, points: Points = ()) -> list[Device]:
    """Return a CPU's caches as devices, first the one that a stage has for itself; ``points`` come from a sweep."""
    if not facts.caches:
        unknown = Figure(_L2, "caches unknown: assumed, the smallest L2 of CPUs of the last ten years", "estimate")
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
