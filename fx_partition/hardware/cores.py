"""Group CPU cores by the cache that they share, from Linux's sysfs; affinity and cgroup limits are respected.

A group is written ``"cores:0-3,8"``, as taskset writes lists of cores.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

SYSFS = Path("/sys/devices/system/cpu")
_GROUP = re.compile(r"cores:(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)")


def allowed_cores() -> tuple[int, ...]:
    """Return the cores on which this process may run, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def core_groups(root: Path = SYSFS) -> list[tuple[int, ...]]:
    """Return the allowed cores, grouped by the outermost cache that not all of them share.

    On a CPU of several L3 domains the groups are these domains; on one whose L3 is common, the cores of each L2. There
    is one group where nothing is known of the caches, or where all cores share every cache.

    Args:
        root: the directory that describes the cores; tests give another one.
    """
    allowed = allowed_cores()
    for level in sorted(_levels(root, allowed), reverse=True):
        groups = {_sharers(root, core, level, allowed) for core in allowed}
        if len(groups) > 1:
            return sorted(groups)
    return [allowed]


def _levels(root: Path, cores: Iterable[int]) -> set[int]:
    return {int(text) for core in cores for index in data_caches(root, core) if (text := read_text(index / "level"))}


def data_caches(root: Path, core: int) -> list[Path]:
    """Return the sysfs directories of a core's data caches."""
    found = sorted((root / f"cpu{core}" / "cache").glob("index*"))
    return [index for index in found if read_text(index / "type") != "Instruction"]


def _sharers(root: Path, core: int, level: int, allowed: tuple[int, ...]) -> tuple[int, ...]:
    for index in data_caches(root, core):
        if read_text(index / "level") == str(level):
            return tuple(sorted(set(parse_list(read_text(index / "shared_cpu_list"))) & set(allowed))) or (core,)
    return (core,)


def read_text(path: Path) -> str:
    """Return a file's text without blanks at its ends; "" where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def parse_list(text: str) -> list[int]:
    """Return the numbers of a list such as ``"0-2,8"``."""
    cores: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return cores


def is_group(name: str) -> bool:
    """Whether a device's name begins as a group of cores does; `parse_group` may still refuse it."""
    return name.startswith("cores:")


def parse_group(name: str) -> tuple[int, ...]:
    """Return the cores of a group such as ``"cores:0-3,8"``.

    Raises:
        ValueError: the name is not a group, or names a core that this process may not use.
    """
    match = _GROUP.fullmatch(name)
    if not match:
        raise ValueError(f'{name!r} is not a group of cores; write "cores:0-3" or "cores:0,2"')
    cores = tuple(sorted(set(parse_list(match[1]))))
    missing = [core for core in cores if core not in allowed_cores()]
    if missing or not cores:
        raise ValueError(
            f"{name!r} names core {', '.join(map(str, missing))}; this process may use {format_group(allowed_cores())}"
        )
    return cores


def format_group(cores: Iterable[int]) -> str:
    """Write a group: ``"cores:0-3,8"`` for the cores 0 to 3 and 8."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return "cores:" + ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
