"""Make device records of the GPUs that torch sees, CUDA's and ROCm's."""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from .records import Device, Figure, devices, from_figures, normalise

#: The record of each architecture of AMD's GPUs, for names that match no record.
_ROCM_RECORDS = {"gfx90a": "MI250X-perGCD", "gfx942": "MI300X", "gfx950": "MI355X"}

_NO_SIZE = "the driver does not say: assumed, the L2 of a P100"
_SLICE = "the record's figure, times the share of the L2 that the driver reports"
_SCALED = (
    "onchip_bytes", "usable_bytes", "half_bytes", "persist_bytes", "onchip_bandwidth", "memory_bandwidth", "peak_flops"
)  # fmt: skip


def find_gpus() -> list[Device]:
    """Return one record a GPU, named as torch names it ("cuda:0"); its aliases are the driver's and the record's name.
    """
    if not torch.cuda.is_available():
        return []
    return [gpu_device(i, torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]


def gpu_device(index: int, properties: Any) -> Device:
    """Return the record of one GPU.

    Args:
        index: torch's index of the GPU.
        properties: the result of ``torch.cuda.get_device_properties``, with ``name``, ``total_memory``,
            ``L2_cache_size``, ``multi_processor_count`` and, on ROCm, ``gcnArchName``.
    """
    architecture = str(getattr(properties, "gcnArchName", "")).partition(":")[0]
    on_rocm = architecture in _ROCM_RECORDS or architecture.startswith("gfx")
    record = match_record(properties.name)
    if record is None and architecture in _ROCM_RECORDS:
        record = match_record(_ROCM_RECORDS[architecture])
    l2 = int(getattr(properties, "L2_cache_size", 0) or 0)
    if record is None:
        found = _unknown(properties, l2)
    elif on_rocm or not l2 or abs(l2 / record.onchip_bytes - 1) < 0.02:
        # ROCm reports the L2 of one die, but the records of AMD's GPUs describe the cache that all dies share.
        found = record
    else:
        found = _slice(record, l2 / record.onchip_bytes)
    aliases = (properties.name,) if record is None else (properties.name, record.name)
    memory = Figure(int(properties.total_memory), "the driver", "datasheet")
    figures = MappingProxyType({**found.figures, "memory_bytes": memory})
    return replace(found, name=f"cuda:{index}", memory_bytes=int(memory.value), aliases=aliases, figures=figures)


def match_record(name: str) -> Device | None:
    """Return the record whose name or alias is a driver's name; the suffix of a MIG instance (" MIG 1g.10gb") is
    ignored."""
    whole = normalise(re.sub(r" MIG \S+$", "", name))
    return next((d for d in devices() if whole in map(normalise, (d.name, *d.aliases))), None)


def _slice(record: Device, share: float) -> Device:
    """Scale a record to the share that the driver grants: a MIG instance, or a card with parts switched off."""
    values = {name: getattr(record, name) for name in _SCALED if getattr(record, name) is not None}
    scaled = {name: type(value)(value * share) for name, value in values.items()}
    figures = {name: Figure(value, _SLICE, "inferred") for name, value in scaled.items()}
    return replace(record, **scaled, figures=MappingProxyType({**record.figures, **figures}))


def _unknown(properties: Any, l2: int) -> Device:
    """Estimate a GPU without a record: sizes come from the driver, bandwidths and peak from its clocks (in kHz)."""
    clock = _positive(properties, "clock_rate", 1_400_000) * 1e3
    bus = _positive(properties, "memory_bus_width", 256) / 8
    memory = 2 * _positive(properties, "memory_clock_rate", 7_000_000) * 1e3 * bus
    flops = properties.multi_processor_count * clock * 256
    return from_figures(
        "",
        "gpu",
        {
            "onchip_bytes": Figure(l2, "the driver", "datasheet") if l2 else Figure(4 * 2**20, _NO_SIZE, "estimate"),
            "onchip_bandwidth": Figure(2.2 * memory, "2.2 times the memory's, low among the records", "estimate"),
            "memory_bandwidth": Figure(memory, "twice the memory's clock x the width of its bus", "estimate"),
            "peak_flops": Figure(flops, "multiprocessors x clock x 128 lanes x 2", "estimate"),
            "link_latency": Figure(12.5e-6, "as between GPUs without peer access", "estimate"),
        },
    )


def _positive(properties: Any, name: str, otherwise: float) -> float:
    """Return a property; or ``otherwise``, as some releases of torch and some drivers do not have it."""
    return float(getattr(properties, name, 0) or otherwise)
