"""Records of devices by name; each figure has its source and a grade of confidence.

The figures are in ``data/devices.json`` and measured curves in ``data/l2_curves.json``. Not all nominal on-chip bytes
are usable: an A100 keeps near-full hits to 0.69 of its L2 only. Where a record has no measured usable bytes, they come
from the curve of a related device or from a rule, and are marked "inferred" (see `hit_curves`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from .hit_curves import (
    USABLE_SHARE,
    Curve,
    curve_from_bandwidth,
    curve_from_rule,
    rate_at,
    scaled,
    share_at,
    usable_share,
)

CONFIDENCES = ("measured", "datasheet", "inferred", "estimate")

# For each ending of a name in the data file: the field's ending, and the factor to bytes, bytes/s, FLOP/s or seconds.
_UNITS = {
    "_MiB": ("_bytes", 2**20), "_GB": ("_bytes", 10**9), "_GBs": ("_bandwidth", 10**9),
    "_TFLOPs": ("_flops", 10**12), "_us": ("_latency", 1e-6),
}  # fmt: skip
_NO_FIGURE = "no figure known: the device has none, or none is published"


@dataclass(frozen=True)
class Figure:
    """One figure of a device.

    Attributes:
        value: the number in the unit of its field: bytes, bytes/s, FLOP/s or seconds.
        source: where the number comes from.
        confidence: "measured" (on such a device), "datasheet" (the vendor's word), "inferred" (from a related device,
            or a rule that held elsewhere) or "estimate".
    """

    value: float
    source: str
    confidence: str

    def __post_init__(self) -> None:
        if self.confidence not in CONFIDENCES:
            raise ValueError(f"confidence={self.confidence!r} is not known; choose from {', '.join(CONFIDENCES)}")


@dataclass(frozen=True)
class Device:
    """The figures of one device.

    Attributes:
        name: the record's name: "H100-SXM".
        kind: "gpu", "cpu" or "accelerator".
        onchip_bytes: nominal bytes of the on-chip memory: a GPU's L2, a CPU's L3, an accelerator's SRAM.
        usable_bytes: the largest working set that on-chip memory still holds; the budget of a plan.
        half_bytes: the working set at which the hit rate falls to one half; None if it stays above.
        onchip_bandwidth: bytes/s from on-chip memory.
        memory_bytes: bytes of the off-chip memory; None if there is none or its size is unknown.
        memory_bandwidth: bytes/s from off-chip memory; 0.0 if there is none.
        peak_flops: dense FLOP/s in ``peak_dtype``.
        link_bandwidth: bytes/s to a neighbour, in one direction; None if unknown.
        link_latency: seconds that a hop takes, however few its bytes.
        persist_bytes: bytes of the L2 that may be set aside for persisting accesses; None where the device cannot.
        hit_curve: (working set as a share of ``onchip_bytes``, hit rate), ascending in the first.
        figures: the figure of each field, and further ones without a field ("memory_bandwidth.datasheet").
        aliases: other names, such as those that a driver reports.
        peak_dtype: the dtype of ``peak_flops``, as torch spells it: "bfloat16".
    """

    name: str
    kind: str
    onchip_bytes: int
    usable_bytes: int
    half_bytes: int | None
    onchip_bandwidth: float
    memory_bytes: int | None
    memory_bandwidth: float
    peak_flops: float
    link_bandwidth: float | None
    link_latency: float
    persist_bytes: int | None
    hit_curve: Curve
    figures: Mapping[str, Figure] = field(repr=False)
    aliases: tuple[str, ...] = ()
    peak_dtype: str = "bfloat16"

    def hit_rate(self, working_set: float) -> float:
        """Return the share of reads that on-chip memory serves when ``working_set`` bytes are swept again and again.

        Example::

            >>> round(device("EdgeTPU").hit_rate(2 * device("EdgeTPU").usable_bytes), 3)
            0.5
        """
        return rate_at(self.hit_curve, working_set / self.onchip_bytes)


def device(name: str) -> Device:
    """Return the record of a name or an alias; case, blanks, dashes and underscores do not matter.

    Raises:
        ValueError: no record has this name; the message lists close matches.

    Example::

        >>> device("h100-sxm").usable_bytes / 2**20
        36.0
    """
    found = find(name)
    if found is None:
        raise ValueError(f"no device is named {name!r}; {suggest(name)}")
    return found


def find(name: str) -> Device | None:
    """Return the record of a name or an alias; None, and no list of close matches, if there is none."""
    return _by_name().get(normalise(name))


def devices() -> list[Device]:
    """Return all records, in the order of the data file.

    Example::

        >>> [record.name for record in devices()][:2]
        ['V100-SXM2-32', 'A100-SXM-40']
    """
    return list(_load())


def suggest(name: str) -> str:
    """Return close matches of an unknown name as text, or the command that lists all names."""
    spelled = {key: record.name for key, record in _by_name().items()}
    close = difflib.get_close_matches(normalise(name), spelled, n=5, cutoff=0.5)
    names = list(dict.fromkeys(spelled[key] for key in close))
    return f"close: {', '.join(names)}" if names else "`fx-partition devices` lists the names"


def normalise(name: str) -> str:
    """Remove from a name what people spell differently: ``normalise("RTX 4090") == normalise("rtx-4090")``."""
    return re.sub(r"[\s_-]+", "", name).lower()


@cache
def _by_name() -> dict[str, Device]:
    return {normalise(name): record for record in _load() for name in (record.name, *record.aliases)}


@cache
def _load() -> tuple[Device, ...]:
    data = json.loads(_data("devices.json"))
    return tuple(_record(name, entry, data["sources"]) for name, entry in data["devices"].items())


@cache
def _curve(name: str) -> Curve:
    curve = json.loads(_data("l2_curves.json"))[name]
    return curve_from_bandwidth(curve["points"], curve["nominal_MiB"])


def _data(file: str) -> str:
    return files(__package__).joinpath("data", file).read_text(encoding="utf-8")


def _record(name: str, entry: Mapping[str, Any], sources: Mapping[str, str]) -> Device:
    figures = dict(_figure(key, rest, sources) for key, rest in entry["figures"].items())
    figures.setdefault("memory_bandwidth", Figure(0.0, _NO_FIGURE, "datasheet"))
    curve = None
    if "curve" in entry:
        curve = _curve(entry["curve"])
        share = usable_share(curve)
        usable = share * figures["onchip_bytes"].value
        figures.setdefault("usable_bytes", Figure(usable, f"{share:.2f} of it, as on {entry['curve']}", "inferred"))
    return from_figures(
        name, entry["kind"], figures, curve=curve, aliases=tuple(entry["aliases"]), peak_dtype=entry["peak_dtype"]
    )


def from_figures(
    name: str,
    kind: str,
    figures: Mapping[str, Figure],
    *,
    curve: Curve | None = None,
    aliases: tuple[str, ...] = (),
    peak_dtype: str = "float32",
) -> Device:
    """Make a device from its figures; the rules of `hit_curves` supply usable bytes and a curve where they are missing.

    Args:
        name, kind, aliases, peak_dtype: fields of the device.
        figures: by field, at least "onchip_bytes", "onchip_bandwidth", "memory_bandwidth", "peak_flops" and
            "link_latency".
        curve: the hit curve of the device or of a related one; it is stretched to the usable bytes.
    """
    onchip = figures["onchip_bytes"].value
    if "usable_bytes" not in figures:
        usable = Figure(USABLE_SHARE[kind] * onchip, f"{USABLE_SHARE[kind]} of it, the rule of hit_curves", "inferred")
        figures = {**figures, "usable_bytes": usable}
    share = figures["usable_bytes"].value / onchip
    curve = curve_from_rule(kind, share) if curve is None else scaled(curve, share / usable_share(curve))
    half = share_at(curve, 0.5)
    return Device(
        name,
        kind,
        int(onchip),
        int(figures["usable_bytes"].value),
        None if half is None else int(half * onchip),
        figures["onchip_bandwidth"].value,
        _bytes(figures, "memory_bytes"),
        figures["memory_bandwidth"].value,
        figures["peak_flops"].value,
        figures["link_bandwidth"].value if "link_bandwidth" in figures else None,
        figures["link_latency"].value,
        _bytes(figures, "persist_bytes"),
        curve,
        MappingProxyType(dict(figures)),
        aliases,
        peak_dtype,
    )


def _figure(key: str, entry: tuple[float, str, str], sources: Mapping[str, str]) -> tuple[str, Figure]:
    """Convert a figure of the data file to its field's unit: ``"onchip_MiB": 50`` is ``"onchip_bytes": 52428800``."""
    number, source, confidence = entry
    stem, dot, which = key.partition(".")
    for ending, (becomes, factor) in _UNITS.items():
        if stem.endswith(ending):
            stem, number = stem.removesuffix(ending) + becomes, number * factor
            break
    return stem + dot + which, Figure(number, sources.get(source, source), confidence)


def _bytes(figures: Mapping[str, Figure], name: str) -> int | None:
    return int(figures[name].value) if name in figures else None
