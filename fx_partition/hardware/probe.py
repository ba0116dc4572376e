"""Measure this machine's caches: bandwidth against working set, the knees of that curve, and usable bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .bandwidth_sweep import Points, save, sweep, working_sets
from .cache_dir import cache_directory, check_writable
from .detect import cpu_devices, cpu_facts
from .records import Device

MOST_SECONDS = 3600


@dataclass(frozen=True)
class Probe:
    """The result of a probe.

    Attributes:
        points: (working set in bytes, bytes/s read by one core), ascending.
        devices: the CPU's caches with the measured figures, as `detect` returns them from now on.
        path: the file that keeps the points for later processes.
    """

    points: Points
    devices: Sequence[Device]
    path: Path


def probe(device: str = "cpu", *, seconds: float = 10.0) -> Probe:
    """Measure the caches of this machine's CPU from one core, and keep the result for `detect` and ``"auto"``.

    Args:
        device: "cpu"; the figures of GPUs come from their records.
        seconds: about how long the measurement may take, at most an hour; a busy machine needs more time for enough
            undisturbed rounds.

    Raises:
        ValueError: ``device`` is not "cpu", ``seconds`` is out of bounds, the system does not report the CPU's caches,
            or the cache directory cannot be used.

    Example::

        >>> for found in fx_partition.probe().devices:  # doctest: +SKIP
        ...     print(found.name, found.usable_bytes)
        cpu:L2 412038
        cpu:L3 15728640
    """
    if device != "cpu":
        raise ValueError(f'probe measures device="cpu", not {device!r}; `fx-partition devices` lists records of others')
    if not 0 <= seconds <= MOST_SECONDS:  # refuses NaN too
        raise ValueError(f"seconds={seconds!r} must be a number from 0 to {MOST_SECONDS}; ten are enough")
    facts = cpu_facts()
    if not facts.caches:
        raise ValueError(
            "this system does not report its CPU's caches, so there is no size around which to measure; give a budget "
            "in bytes instead"
        )
    check_writable(cache_directory())
    points = sweep(working_sets(facts), seconds)
    path = save(facts, points)
    return Probe(points, cpu_devices(facts, points), path)
