"""Read a CPU's facts from macOS and Windows, as far as they tell them; neither limits a process as Linux does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence

from .cpu_info import Cache, CpuFacts

_MACOS_KEYS = (
    "machdep.cpu.brand_string", "hw.ncpu", "hw.memsize", "hw.cpufrequency", "hw.l2cachesize", "hw.l3cachesize",
    "hw.perflevel0.l2cachesize", "hw.perflevel0.cpusperl2",
)  # fmt: skip
_WINDOWS_QUERY = (
    "Get-CimInstance Win32_Processor | Select-Object Name,NumberOfCores,NumberOfLogicalProcessors,MaxClockSpeed,"
    "L2CacheSize,L3CacheSize | ConvertTo-Json"
)


def unknown_cpu() -> CpuFacts:
    """Return the facts of a CPU of which only the number of cores is known."""
    return CpuFacts("", (), float(os.cpu_count() or 1), 0.0, None, "os.cpu_count")


def macos_cpu() -> CpuFacts:
    """Return the CPU's facts from sysctl. Where a chip has two kinds of cores, the fast ones count (``perflevel0``)."""
    lines = (line.partition(":") for line in _output(["sysctl", *_MACOS_KEYS]).splitlines())
    values = {key.strip(): value.strip() for key, _, value in lines}
    numbers = {key: int(value) for key, value in values.items() if value.isdecimal()}
    cores = numbers.get("hw.ncpu", os.cpu_count() or 1)
    sharers = numbers.get("hw.perflevel0.cpusperl2", 1)
    level2 = numbers.get("hw.perflevel0.l2cachesize", numbers.get("hw.l2cachesize", 0))
    level3 = numbers.get("hw.l3cachesize", 0)
    return CpuFacts(
        name=values.get("machdep.cpu.brand_string", ""),
        caches=_caches((2, level2, sharers), (3, level3, cores), cores=cores),
        cores=float(cores),
        hertz=float(numbers.get("hw.cpufrequency", 0)),
        memory_bytes=numbers.get("hw.memsize"),
        source="sysctl",
    )


def windows_cpu() -> CpuFacts:
    """Return the CPU's facts from PowerShell."""
    text = _output(["powershell", "-NoProfile", "-Command", _WINDOWS_QUERY])
    try:
        answer = json.loads(text)
    except ValueError:
        return unknown_cpu()
    first = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(first, dict):
        return unknown_cpu()
    physical = int(first.get("NumberOfCores") or 1)
    logical = int(first.get("NumberOfLogicalProcessors") or physical)
    level2 = int(first.get("L2CacheSize") or 0) * 2**10 // physical  # Windows sums the L2 of all cores, in KiB
    level3 = int(first.get("L3CacheSize") or 0) * 2**10
    return CpuFacts(
        name=str(first.get("Name") or "").strip(),
        caches=_caches((2, level2, logical // physical), (3, level3, logical), cores=logical),
        cores=float(logical),
        hertz=float(first.get("MaxClockSpeed") or 0) * 1e6,
        memory_bytes=None,
        source="Win32_Processor",
    )


def _caches(*levels: tuple[int, int, int], cores: int) -> tuple[Cache, ...]:
    """Make caches from (level, bytes, how many cores share it); a cache of 0 bytes does not exist."""
    return tuple(Cache(level, number, n, n, n >= cores) for level, number, n in levels if number > 0)


def _output(command: Sequence[str]) -> str:
    """Return what a command prints; "" where it is missing, hangs or prints something else than text.

    The exit code does not matter: sysctl fails if it lacks one of the keys, but prints the others.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return ""
