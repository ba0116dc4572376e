"""Read a CPU's caches from Linux's sysfs, and what this process may use of it from its affinity and cgroups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .cores import SYSFS, allowed_cores, data_caches, parse_list, read_text
from .cpu_info import Cache, CpuFacts

_SIZE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}


def linux_cpu(sysfs: Path = SYSFS, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> CpuFacts:
    """Return the facts of this machine's CPU; tests give other directories."""
    allowed = allowed_cores()
    info = read_text(proc / "cpuinfo")
    found = (_cache(sysfs, level, allowed) for level in (2, 3))
    hertz, clock = _clock(sysfs, allowed[0], info)
    return CpuFacts(
        name=_field(info, "model name"),
        caches=tuple(cache for cache in found if cache is not None),
        cores=min(float(len(allowed)), cpu_quota(proc, cgroups)),
        hertz=hertz,
        memory_bytes=_memory_bytes(proc),
        source="Linux: sysfs and /proc",
        clock=clock,
    )


def _cache(sysfs: Path, level: int, allowed: Sequence[int]) -> Cache | None:
    """Return the smallest cache of a level, as shared out to one core; cores of two kinds have different caches."""
    found = []
    for core in allowed:
        for index in data_caches(sysfs, core):
            size = re.fullmatch(r"(\d+)([KMG]?)", read_text(index / "size"))
            if read_text(index / "level") == str(level) and size and int(size[1]):
                sharers = set(parse_list(read_text(index / "shared_cpu_list"))) or {core}
                cores = sharers & set(allowed) or {core}
                number = int(size[1]) * _SIZE_UNITS[size[2]]
                found.append(Cache(level, number, len(sharers | cores), len(cores), len(cores) == len(allowed)))
    return min(found, key=lambda cache: cache.bytes * cache.cores / cache.sharers, default=None)


def cpu_quota(proc: Path, cgroups: Path) -> float:
    """Return how many cores' time the cgroups of this process allow; infinite without a limit.

    A group's limit holds for the groups in it, so the tightest limit on the way to the root counts. Both versions of
    cgroups are read: ``cpu.max`` ("150000 100000" is one and a half cores), and ``cpu.cfs_quota_us`` of version 1.
    """
    limits = [float("inf")]
    for line in read_text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            limits += [_limit(*read_text(folder / "cpu.max").split()) for folder in _upwards(cgroups, path)]
        elif "cpu" in controllers.split(","):
            for folder in _upwards(cgroups / "cpu", path):
                limits.append(_limit(read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")))
    return min(limits)


def _upwards(root: Path, path: str) -> list[Path]:
    """Return a group's directory and those of its parents; in a container only the root may exist."""
    inner = PurePosixPath(path.lstrip("/"))
    return [root / part for part in (inner, *inner.parents)]


def _limit(quota: str = "", period: str = "") -> float:
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        return int(quota) / int(period)
    return float("inf")


def _field(info: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.+)$", info, re.MULTILINE)
    return match[1].strip() if match else ""


def _clock(sysfs: Path, core: int, info: str) -> tuple[float, str]:
    """Return the clock in hertz and its kind. /proc/cpuinfo changes with load, but is all that virtual machines have.
    """
    kilohertz = read_text(sysfs / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq")
    if kilohertz.isdecimal():
        return float(kilohertz) * 1e3, "the core's highest"
    return float(_field(info, "cpu MHz") or 0) * 1e6, "that of the moment, an estimate of the highest"


def _memory_bytes(proc: Path) -> int | None:
    kib = _field(read_text(proc / "meminfo"), "MemTotal").removesuffix("kB").strip()
    return int(kib) * 2**10 if kib else None
