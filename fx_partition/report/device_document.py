"""Describe device records: all of them and this machine's devices, or every figure of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from fx_partition.common.units import format_bytes
from fx_partition.hardware.records import Device

from .document import Document, Section, Table, code, count

# The figures of a row, in the order of its columns.
_SHOWN = {
    "onchip_bytes": "on-chip", "usable_bytes": "usable", "onchip_bandwidth": "on-chip GB/s",
    "memory_bandwidth": "off-chip GB/s", "peak_flops": "peak TFLOP/s",
}  # fmt: skip
_FIGURE_HEADERS = ("figure", "value", "confidence", "source")
# Working sets, as shares of the nominal on-chip bytes, for which the hit rate is listed.
_SHARES = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
_CAUTION = (
    "Usable bytes are the largest working set that the device still holds. Give the name of a device as a "
    "size to use them (`--cache H100-SXM`). `fx-partition devices NAME` says where each figure comes from."
)


def devices_json(records: Sequence[Device], here: Sequence[Device]) -> str:
    """Return both lists as JSON: ``{"here": [...], "records": [...]}``, every record as `device_dict` returns it."""
    return json.dumps({"here": list(map(device_dict, here)), "records": list(map(device_dict, records))}, indent=2)


def device_dict(device: Device) -> dict[str, Any]:
    """Return a record as JSON data in bytes, bytes/s, FLOP/s and seconds; figures have value, source and confidence."""
    fields = {name: value for name, value in vars(device).items() if name != "figures"}
    return {**fields, "figures": {name: vars(figure) for name, figure in device.figures.items()}}


def devices_document(records: Sequence[Device], here: Sequence[Device]) -> Document:
    """Return a document with a table of this machine's devices and one of all records."""
    return Document(
        f"This machine has {', '.join(f'{format_bytes(d.usable_bytes)} usable in {d.name}' for d in here)}.",
        (
            Section("Here", table=device_table(here, with_alias=True)),
            Section(count(len(records), "record"), table=device_table(records)),
        ),
        _CAUTION,
    )


def device_document(device: Device) -> Document:
    """Return a document with every figure of one record and its source."""
    rows = tuple(
        (name, _value(name, figure.value), figure.confidence, figure.source) for name, figure in device.figures.items()
    )
    sizes = [int(share * device.onchip_bytes) for share in _SHARES]
    points = tuple(f"{format_bytes(size)}: {100 * device.hit_rate(size):.0f}%" for size in sizes)
    also = f"Also: {', '.join(device.aliases)}." if device.aliases else ""
    return Document(
        f"{device.name} holds {format_bytes(device.usable_bytes)} of {format_bytes(device.onchip_bytes)} on chip.",
        (
            Section("Figures", also, Table(_FIGURE_HEADERS, (False, True, False, False), rows)),
            Section("Hit rate by working set", points=points),
        ),
        _CAUTION,
    )


def device_table(found: Sequence[Device], with_alias: bool = False) -> Table:
    """Return a table with one row for each device."""
    cells: list[tuple[str, bool, Callable[[Device], str]]] = [
        ("name", False, lambda d: code(d.name)),
        ("on-chip", True, lambda d: format_bytes(d.onchip_bytes)),
        ("usable", True, lambda d: format_bytes(d.usable_bytes)),
        ("on-chip GB/s", True, lambda d: _scaled(d.onchip_bandwidth, 1e9)),
        ("off-chip GB/s", True, lambda d: _scaled(d.memory_bandwidth, 1e9)),
        ("peak TFLOP/s", True, lambda d: _scaled(d.peak_flops, 1e12)),
        ("dtype", False, lambda d: d.peak_dtype),
        ("confidence", False, _confidence),
    ]
    if with_alias:
        cells.insert(1, ("reported as", False, lambda d: ", ".join(d.aliases)))
    return Table(
        headers=tuple(header for header, _, _ in cells),
        numeric=tuple(numeric for _, numeric, _ in cells),
        rows=tuple(tuple(cell(device) for _, _, cell in cells) for device in found),
    )


def _confidence(device: Device) -> str:
    """Return the confidence of the figures in a row; where some are estimated or inferred, only these, by kind."""
    kinds: dict[str, list[str]] = {}
    for name, label in _SHOWN.items():
        kinds.setdefault(device.figures[name].confidence, []).append(label)
    weak = [f"{kind}: {', '.join(kinds[kind])}" for kind in ("estimate", "inferred") if kind in kinds]
    return "; ".join(weak) or " and ".join(sorted(kinds))


def _value(name: str, value: float) -> str:
    stem = name.partition(".")[0]
    if stem.endswith("_bytes"):
        return format_bytes(int(value))
    units = {"_bandwidth": (1e9, "GB/s"), "_flops": (1e12, "TFLOP/s"), "_latency": (1e-6, "us")}
    for ending, (scale, unit) in units.items():
        if stem.endswith(ending):
            return f"{_scaled(value, scale)} {unit}"
    return f"{value:g}"


def _scaled(value: float, scale: float) -> str:
    return "-" if value == 0 else f"{value / scale:,.{0 if value >= 10 * scale else 2}f}"
