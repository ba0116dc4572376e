"""What a probe measured, for readers: bandwidth against working set as bars, and what it says of each cache."""

from __future__ import annotations

import json

from fx_partition.hardware.probe import Probe
from fx_partition.passes.sizes import format_bytes

from .devices import device_dict, device_table
from .document import Document, Section, Table

_BAR = 50
# Of the measured sizes every so many are drawn: two an octave.
_EACH = 4


def probe_json(probe: Probe) -> str:
    """``{"points": [[bytes, bytes/s], ...], "devices": [...], "path": "..."}``, devices as `device_dict` gives them."""
    devices = list(map(device_dict, probe.devices))
    return json.dumps({"points": probe.points, "devices": devices, "path": str(probe.path)}, indent=2)


def probe_document(probe: Probe) -> Document:
    """Bars of bandwidth, the nominal and usable sizes between them, and a table of the caches."""
    fastest = max(rate for _, rate in probe.points)
    rows = [(size, f"{rate / 1e9:.1f}", "#" * round(_BAR * rate / fastest)) for size, rate in probe.points[::_EACH]]
    for device in probe.devices:
        rows.append((float(device.onchip_bytes), "", f"-- {device.name}, nominal"))
        if device.figures["usable_bytes"].confidence == "measured":
            rows.append((float(device.usable_bytes), "", f"-- {device.name}, usable"))
    table = Table(
        headers=("working set", "GB/s", ""),
        numeric=(True, True, False),
        rows=tuple((format_bytes(int(size)), rate, bar) for size, rate, bar in sorted(rows)),
    )
    return Document(
        f"{', '.join(f'{format_bytes(d.usable_bytes)} usable in {d.name}' for d in probe.devices)}.",
        (Section("Read by one core", table=table), Section("Caches", table=device_table(probe.devices))),
        f"Kept in {probe.path} for `fx_partition.detect`. A cache that is hardly faster than what lies beyond it shows "
        "no knee; then its usable bytes stay those of the rule. Other load on the machine shows in every figure.",
    )
