"""Describe the measurements of a probe: bandwidth against working set as a plot, and the record of each cache."""

from __future__ import annotations

import json

from fx_partition.common.units import format_bytes
from fx_partition.hardware.probe import Probe

from .ascii_plot import Mark, draw
from .device_document import device_dict, device_table
from .document import Document, Section


def probe_json(probe: Probe) -> str:
    """Return ``{"points": [[bytes, bytes/s], ...], "devices": [...], "path": "..."}``, devices as `device_dict`s."""
    devices = list(map(device_dict, probe.devices))
    return json.dumps({"points": probe.points, "devices": devices, "path": str(probe.path)}, indent=2)


def probe_document(probe: Probe) -> Document:
    """Return a document with a plot of bandwidth, nominal and usable sizes marked in it, and a table of the caches."""
    rates = [(size, rate / 1e9) for size, rate in probe.points]
    plot = Section("GB/s that one core reads, by working set", drawing=draw(rates, marks(probe)))
    return Document(
        f"{', '.join(f'{format_bytes(d.usable_bytes)} usable in {d.name}' for d in probe.devices)}.",
        (plot, Section("Caches", table=device_table(probe.devices))),
        f"Kept in {probe.path} for `fx_partition.detect`. A cache that is hardly faster than the memory behind it has "
        "no knee; then its usable bytes are still those of the rule. Other load on the machine changes every figure.",
    )


def marks(probe: Probe) -> list[Mark]:
    """Return marks at the nominal sizes (dotted) and at the usable sizes that were measured (the knees)."""
    found = []
    for device in probe.devices:
        found.append(Mark(device.onchip_bytes, f"{device.name}: {format_bytes(device.onchip_bytes)} nominal", ":"))
        if device.figures["usable_bytes"].confidence == "measured":
            found.append(Mark(device.usable_bytes, f"{device.name}: {format_bytes(device.usable_bytes)} usable", "|"))
    return found
