"""Refuse what engines cannot say: a module that is cut, stages that take turns on a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from fx_partition.common.errors import PartitionError

from .module_stages import ModuleStages


def named(path: str) -> str:
    """Return a module for a message."""
    return f"the module {path!r}" if path else "the model itself"


def listed(stages: Iterable[int]) -> str:
    """Return stages for a message: "0 and 1"."""
    *rest, last = map(str, sorted(stages))
    return f"{', '.join(rest)} and {last}" if rest else last


def cut(engine: str, path: str, stages: Iterable[int]) -> PartitionError:
    """Return the error for a module that is divided among stages."""
    return PartitionError(
        f"the boundary between stages {listed(stages)} cuts {named(path)}, and {engine} takes whole modules; "
        'plan with boundaries="modules", or take the cuts of fx_partition.fit, which lie between modules'
    )


def refuse_cut_steps(engine: str, stages: ModuleStages) -> None:
    """Raise an error if a boundary lies between two steps of one module that follow one another.

    Raises:
        PartitionError: it names the module.
    """
    for run, behind in pairwise(stages.runs):
        if run.path == behind.path and run.stage != behind.stage:
            raise cut(engine, run.path, (run.stage, behind.stage))


def refuse_turns(engine: str, devices: Sequence[int | str]) -> None:
    """Raise an error if a device has several stages.

    Raises:
        PartitionError: it names the device.
    """
    for place, device in enumerate(devices):
        if device in devices[:place]:
            raise PartitionError(
                f"stages {devices.index(device)} and {place} take turns on the device {device}, and {engine} has one "
                "stage for each device; plan with more devices, or with devices=N and no cache_bytes for the smallest "
                "budget for which N suffice"
            )
