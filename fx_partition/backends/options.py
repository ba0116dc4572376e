"""What a user may ask of ``torch.compile(..., backend="l2partition", options={...})``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from fx_partition.passes.errors import PartitionError
from fx_partition.passes.planning import Request
from fx_partition.passes.sizes import parse_bytes

_REPORT_SUFFIXES = {".txt": "text", ".md": "markdown", ".json": "json"}


@dataclass(frozen=True)
class Options:
    """The backend's options; everything else about a plan is `planning.Request`.

    Attributes:
        budget: usable on-chip bytes of one device; None for no limit, which is one partition.
        devices: names of torch devices, in stage order; empty for one in-line stage a partition, all on the model's
            own device.
        report: True prints the report to standard error once compiled; a path ending in .txt, .md or .json writes it.
        inductor: options of inductor itself.
        planning: options of the planner, checked when the graph arrives.
    """

    budget: int | None = None
    devices: tuple[str, ...] = ()
    report: bool | str = False
    inductor: Mapping[str, Any] = field(default_factory=dict)
    planning: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def check(cls, options: Mapping[str, Any] | None) -> Options:
        """Options from a user's words, before anything is compiled.

        Raises:
            PartitionError: an unknown option, device or choice, or a size that is none; it names what there is.
        """
        given = dict(options or {})
        planning_names = {f.name for f in fields(Request)} - {"budget", "devices"}
        own = {"cache_bytes", "devices", "report", "inductor"}
        unknown = set(given) - planning_names - own
        if unknown:
            raise PartitionError(
                f"unknown option {', '.join(map(repr, sorted(unknown)))}; the options of l2partition are "
                f"{', '.join(sorted(planning_names | own))}"
            )
        budget = parse_bytes(given["cache_bytes"]) if given.get("cache_bytes") is not None else None
        devices = _devices(given.get("devices"), budget)
        planning = {name: given[name] for name in planning_names if name in given}
        if budget is not None:
            Request.check(budget, devices, **planning)
        elif len(devices) > 1:
            raise PartitionError("several devices need a budget: set cache_bytes to the on-chip bytes of one of them")
        report = given.get("report", False)
        if not isinstance(report, bool) and not (isinstance(report, str) and _suffix(report) in _REPORT_SUFFIXES):
            raise PartitionError(f"report={report!r} is neither True nor a path ending in .txt, .md or .json")
        return cls(budget, devices, report, given.get("inductor", {}), planning)

    @property
    def report_format(self) -> str:
        return _REPORT_SUFFIXES[_suffix(self.report)] if isinstance(self.report, str) else "text"


def _suffix(path: str) -> str:
    return path[path.rfind(".") :] if "." in path else ""


def _devices(devices: str | Sequence[str] | None, budget: int | None) -> tuple[str, ...]:
    """Stage devices. None: the visible GPUs, or in-line stages without one; one name: all stages on it."""
    if devices is None:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(f"cuda:{i}" for i in range(count)) if budget is not None else ()
    if isinstance(devices, str):
        _check_device(devices)
        return () if torch.device(devices) == torch.device("cpu") else (devices,)
    if not devices:
        raise PartitionError("devices=[] names none; leave it out for the default")
    for device in devices:
        _check_device(device)
    return tuple(map(str, devices))


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PartitionError(
            f"devices names {name!r}, which is no torch device; for example 'cpu' or 'cuda:0'"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PartitionError(f"devices names {name!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise PartitionError(f"devices names {name!r}; only cpu and cuda devices are supported")
