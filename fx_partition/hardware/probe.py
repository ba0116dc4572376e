"""Measure this machine's caches: bandwidth against working set, its knees, and what they say of usable bytes."""

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
    """What a probe found.

    Attributes:
        points: (working set in bytes, bytes/s read by one core), ascending.
        devices: the CPU's caches with what was measured, as `detect` gives them from now on.
        path: where the points are kept for later processes.
    """

    points: Points
    devices: Sequence[Device]
    path: Path


def probe(device: str = "cpu", *, seconds: float = 10.0) -> Probe:
    """Measure the caches of this machine's CPU from one core, and keep what was found for `detect` and ``"auto"``.

    Args:
        device: "cpu"; the figures of GPUs come from their records.
        seconds: about how long it may take, an hour at most; a machine that is busy needs them, to find rounds that it
            does not disturb.

    Raises:
        ValueError: another device, seconds out of bounds, nothing is known of the CPU's caches, or the cache directory
            cannot be used.

    Example::

        >>> for found in fx_partition.probe().devices:  # doctest: +SKIP
        ...     print(found.name, found.usable_bytes)
        cpu:L2 412038
        cpu:L3 15728640
    """
    if device != "cpu":
        raise ValueError(f'probe measures device="cpu", not {device!r}; `fx-partition devices` lists records of others')
    if not 0 <= seconds <= MOST_SECONDS:  # which "not a number" is not either
        raise ValueError(f"seconds={seconds!r} must be a number from 0 to {MOST_SECONDS}; ten are enough")
    facts = cpu_facts()
    if not facts.caches:
        raise ValueError("this system says nothing of its CPU's caches, so there is no size around which to measure")
    check_writable(cache_directory())
    points = sweep(working_sets(facts), seconds)
    path = save(facts, points)
    return Probe(points, cpu_devices(facts, points), path)
