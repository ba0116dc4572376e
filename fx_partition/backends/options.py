"""What a user may ask of ``torch.compile(..., backend="l2partition", options={...})``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fx_partition.passes.errors import PartitionError
from fx_partition.passes.request import NO_BUDGET, Request

_REPORT_SUFFIXES = {".txt": "text", ".md": "markdown", ".json": "json"}


@dataclass(frozen=True)
class Options:
    """The backend's options; everything else about a plan is `request.Request`.

    Attributes:
        request: what is asked of the planner; its budget is ``NO_BUDGET`` where none was given.
        report: True prints the report to standard error once compiled; a path ending in .txt, .md or .json writes it.
        inductor: options of inductor itself.
    """

    request: Request
    report: bool | str = False
    inductor: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def check(cls, options: Mapping[str, Any] | None) -> Options:
        """Options from a user's words, before anything is compiled.

        Raises:
            PartitionError: an unknown option, device or choice, or a size that is none; it names what there is.
        """
        given = dict(options or {})
        own = {"cache_bytes", "devices", "report", "inductor"}
        unknown = set(given) - Request.options() - own
        if unknown:
            raise PartitionError(
                f"unknown option {', '.join(map(repr, sorted(unknown)))}; the options of l2partition are "
                f"{', '.join(sorted(Request.options() | own))}"
            )
        budget = given.get("cache_bytes")
        devices = _devices(given.get("devices"), budget is not None)
        planning = {name: given[name] for name in Request.options() if name in given}
        if budget is None and not isinstance(devices, int) and len(devices) < 2:
            budget = NO_BUDGET
        request = Request.check(budget, None if devices == () else devices, **planning)
        report = given.get("report", False)
        if not isinstance(report, bool) and not (isinstance(report, str) and _suffix(report) in _REPORT_SUFFIXES):
            raise PartitionError(f"report={report!r} is neither True nor a path ending in .txt, .md or .json")
        return cls(request, report, given.get("inductor", {}))

    @property
    def places_nothing(self) -> bool:
        """Whether neither a budget nor a device was named: then this is inductor, whole."""
        return self.request.budget == NO_BUDGET and not self.request.devices

    @property
    def measures(self) -> bool:
        """Whether to see what compiled stages allocate: footprints are for inference, and eager's are not theirs."""
        return self.request.footprint == "fused" and not torch.is_grad_enabled()

    @property
    def report_format(self) -> str:
        return _REPORT_SUFFIXES[_suffix(self.report)] if isinstance(self.report, str) else "text"


def _suffix(path: str) -> str:
    return path[path.rfind(".") :] if "." in path else ""


def _devices(devices: int | str | Sequence[str] | None, has_budget: bool) -> int | tuple[str, ...]:
    """Stage devices. None: the visible GPUs, or in-line stages without one; one name: all stages on it; a number: so
    many of the visible GPUs, or of in-line stages without one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices is None:
        return tuple(f"cuda:{i}" for i in range(count)) if has_budget else ()
    if isinstance(devices, int):
        if count and devices > count:
            raise PartitionError(f"devices={devices}, and there are {count} CUDA devices; a list may repeat one")
        return tuple(f"cuda:{i}" for i in range(devices)) if count else devices
    if isinstance(devices, str):
        check_device(devices)
        return () if torch.device(devices) == torch.device("cpu") else (devices,)
    if not devices:
        raise PartitionError("devices=[] names none; leave it out for the default")
    for device in devices:
        check_device(device)
    return tuple(map(str, devices))


def check_device(name: str) -> None:
    """Refuse the name of a device that torch or this machine does not have.

    Raises:
        PartitionError: it says what there is.
    """
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
