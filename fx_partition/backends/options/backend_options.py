"""The options of ``torch.compile(..., backend="l2partition", options={...})``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fx_partition.common.errors import PartitionError
from fx_partition.hardware.cores import is_group
from fx_partition.passes.plan.request import DEVICE, NO_BUDGET, Request
from fx_partition.report.output import check_place

from ..devices.home_device import with_index
from .rank_options import RankOptions

#: The device name for "a stage thread on each group of cores", where a runtime has stage threads.
STAGE_THREADS = "cpu:threads"

#: A former option; it set malloc of the whole process, which an option of one graph must not do.
_KEEP_BUFFERS = "; malloc is set for the whole process, by fx_partition.keep_buffers()"

_REPORT_SUFFIXES = {".txt": "text", ".md": "markdown", ".json": "json"}


@dataclass(frozen=True)
class Options:
    """The backend's own options; those of the planner are in `request`.

    Attributes:
        request: the request to the planner; its budget is ``NO_BUDGET`` where the user gave none.
        report: True prints the report to standard error after compilation; a path that ends in .txt, .md or .json
            writes it to this file.
        inductor: options of inductor itself.
        microbatches: the number of microbatches of a call; each partition runs all of them before the next partition
            runs. 1: the batch runs whole. None ("auto" to the user): the number of the least cost, which is 1 where
            microbatches do not pay (see `batching.microbatch_cost`). For inference, and for graphs that treat each row
            of the batch alone (see `separability`).
        replan: whether a call beyond the sizes for which the plan fits is compiled with another plan; both are kept.
            False: the first such call gives a warning.
        ranks: the options of the runtime on ranks, where the devices are ranks: ``devices="ranks"``, and by default
            when a process group of more than one rank was initialised. None elsewhere.
    """

    request: Request
    report: bool | str = False
    inductor: Mapping[str, Any] = field(default_factory=dict)
    microbatches: int | None = 1
    replan: bool = False
    ranks: RankOptions | None = None

    @classmethod
    def check(cls, options: Mapping[str, Any] | None) -> Options:
        """Read the options that a user gave, before anything is compiled.

        Raises:
            PartitionError: an unknown option, device or choice, a wrong size, or a report that cannot be written; it
                names the choices.
        """
        given = dict(options or {})
        own = {"cache_bytes", "devices", "report", "inductor", "microbatches", "replan"}
        own |= {"group", "output", "timeout"}
        unknown = set(given) - Request.options() - own
        if unknown:
            raise PartitionError(
                f"unknown option {', '.join(map(repr, sorted(unknown)))}; the options of l2partition are "
                f"{', '.join(sorted(Request.options() | own))}{_KEEP_BUFFERS if 'keep_buffers' in unknown else ''}"
            )
        budget = given.get("cache_bytes")
        ranks = RankOptions.check(given)
        devices = ranks.names if ranks else _devices(given.get("devices"), budget is not None)
        planning = {name: given[name] for name in Request.options() if name in given}
        if budget is None and not isinstance(devices, int) and len(devices) < 2:
            budget = NO_BUDGET
        request = Request.check(budget, None if devices == () else devices, **planning)
        report = given.get("report", False)
        if not isinstance(report, bool) and not (isinstance(report, str) and _suffix(report) in _REPORT_SUFFIXES):
            raise PartitionError(f"report={report!r} is neither True nor a path ending in .txt, .md or .json")
        if isinstance(report, str):
            try:
                check_place(Path(report), "report=")
            except ValueError as error:
                raise PartitionError(str(error)) from error
        microbatches = _microbatches(given.get("microbatches", 1), request)
        replan = given.get("replan", False)
        if not isinstance(replan, bool):
            raise PartitionError(f"replan={replan!r} is neither True nor False")
        if replan and ranks:
            raise PartitionError("replan=True is for one process; ranks must all compile the same graphs")
        if replan and microbatches != 1:
            raise PartitionError("replan=True needs microbatches=1: a plan for microbatches has no range for calls")
        return cls(request, report, given.get("inductor", {}), microbatches, replan, ranks)

    @property
    def places_nothing(self) -> bool:
        """Whether the user named neither a budget nor a device: then inductor compiles the whole graph."""
        return self.request.budget == NO_BUDGET and not self.request.devices and self.microbatches == 1

    @property
    def measures(self) -> bool:
        """Whether to measure what compiled stages allocate: only for inference, and for footprints of compiled code."""
        return self.request.footprint == "fused" and not torch.is_grad_enabled()

    @property
    def report_format(self) -> str:
        """The format of the report: "text", "markdown" or "json"."""
        return _REPORT_SUFFIXES[_suffix(self.report)] if isinstance(self.report, str) else "text"


def _microbatches(given: Any, request: Request) -> int | None:
    if given == "auto":
        if request.budget == NO_BUDGET:
            raise PartitionError('microbatches="auto" fits footprints to a budget; name it with cache_bytes=')
        if request.memory == DEVICE:
            raise PartitionError('microbatches="auto" counts what a cache keeps; leave memory="device" out')
        return None
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise PartitionError(f'microbatches={given!r} is neither a number of 1 or more nor "auto"')
    return given


def _suffix(path: str) -> str:
    return path[path.rfind(".") :] if "." in path else ""


def _devices(devices: int | str | Sequence[str] | None, has_budget: bool) -> int | tuple[str, ...]:
    """Return the devices of the stages by name, or a number of in-line stages where there is no GPU.

    Args:
        devices: None: the visible GPUs if there is a budget; one name: all stages run there; a number: that many of the
            visible GPUs, or of in-line stages where there is none.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices is None:
        return tuple(f"cuda:{i}" for i in range(count)) if has_budget else ()
    if isinstance(devices, int):
        if count and devices > count:
            raise PartitionError(f"devices={devices}, and there are {count} CUDA devices; a list may name one twice")
        return tuple(f"cuda:{i}" for i in range(devices)) if count else devices
    if isinstance(devices, str):
        name = check_device(devices)
        return () if name == "cpu" else (name,)
    if not devices:
        raise PartitionError("devices=[] names no device; leave it out for the default")
    return tuple(map(check_device, devices))


def check_device(name: str | torch.device) -> str:
    """Return the name that tensors give a device (``cuda`` is the current GPU).

    Raises:
        PartitionError: torch or this machine does not have the device; it says which there are.
    """
    name = str(name)
    if name == STAGE_THREADS or is_group(name):
        raise PartitionError(
            f"devices names {name!r}, and stage threads are for fx_partition.pipeline(model, x, devices={name!r}); "
            "a compiled call runs its partitions one after another: leave devices out, or name 'cpu' or 'cuda:0'"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PartitionError(
            f"devices names {name!r}, which is not a torch device; name 'cpu' or 'cuda:0', for example"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PartitionError(f"devices names {name!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise PartitionError(f"devices names {name!r}; only cpu and cuda devices are supported")
    return str(with_index(device))
