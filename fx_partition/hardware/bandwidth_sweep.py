"""Measure the read bandwidth of one core against working set with torch, and keep it for later processes.

A reduction over ``x.expand(times, n)`` along ``n`` reads the same n numbers ``times`` times in one call, so the time
includes neither Python nor the dispatcher. Rounds are interleaved over all sizes, so that a busy moment of the machine
spoils one round and not one size. Each round places the working set elsewhere in one buffer, because a physically
indexed cache holds more of some pages than of others.

The clock is the thread's own, which stands still while another process has its core. The result for a size is the
upper quartile of its rounds. Other work only ever slows a sweep, so a median describes a busy machine; STREAM
(McCalpin) takes the best of its runs for that reason. But the best of a hundred rounds is a lucky moment of a shared
cache, and scatters more than the quartile.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import TypeAlias

import torch

from .cache_dir import UntrustedCacheError, cache_directory, put_whole
from .cpu_info import CpuFacts

#: (bytes, bytes/s), ascending in bytes.
Points: TypeAlias = "Sequence[tuple[float, float]]"

_STEPS_AN_OCTAVE = 8
_PAGE = 4096
_READ_BYTES = 2**25  # one measurement reads at least this
_LEAST_ROUNDS = 3
_GOLDEN = 0.618034  # the fractional parts of its multiples spread evenly over 0 to 1, however many there are
_MOST_BYTES = 2**31
# The thread's own clock stands still while another process has its core. Windows counts it in ticks of 16 ms, which
# are too long.
_clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-6 else time.perf_counter


def working_sets(facts: CpuFacts) -> list[int]:
    """Return sizes in bytes from an eighth of the innermost cache to four times the outermost, 8 an octave.

    The largest is at most a quarter of the memory, and at most 2 GiB.
    """
    sizes = [cache.bytes for cache in facts.caches]
    smallest, largest = min(sizes) // 8, min(4 * max(sizes), (facts.memory_bytes or _MOST_BYTES) // 4, _MOST_BYTES)
    found, step = [], 0
    while (size := int(smallest * 2 ** (step / _STEPS_AN_OCTAVE)) // _PAGE * _PAGE) <= largest:
        found.append(size)
        step += 1
    return sorted(set(found) - {0})


def sweep(sizes: list[int], seconds: float) -> Points:
    """Measure the read bandwidth of the calling thread for each working set.

    Args:
        sizes: bytes, multiples of 4.
        seconds: no round begins that would end later than this, but at least three rounds run.
    """
    numbers = torch.ones(max(sizes) // 4)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    began, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for done in count():
            if done >= _LEAST_ROUNDS and time.perf_counter() - began > seconds * done / (done + 1):
                break
            for size in sizes:
                rates[size].append(_rate(_part(numbers, size, done * _GOLDEN % 1)))
    finally:
        torch.set_num_threads(threads)
    return [(float(size), quantiles(found, method="inclusive")[2]) for size, found in rates.items()]


def _part(numbers: torch.Tensor, size: int, at: float) -> torch.Tensor:
    """Return ``size`` bytes of the buffer, page aligned; ``at`` places them, from its start (0) to its end (1)."""
    start = int(at * (numbers.nbytes - size)) // _PAGE * _PAGE
    return numbers[start // 4 : (start + size) // 4]


def _rate(numbers: torch.Tensor) -> float:
    times = max(1, _READ_BYTES // (4 * numbers.numel()))
    torch.sum(numbers)  # load what the measurement before has evicted
    begin = _clock()
    torch.sum(numbers.expand(times, -1), dim=1)
    return 4 * numbers.numel() * times / (_clock() - begin)


def save(facts: CpuFacts, points: Points) -> Path:
    """Keep a sweep for later processes on this machine; return the path of its file."""
    path = _path(facts)
    put_whole(path, json.dumps({"cpu": facts.name, "host": platform.node(), "points": points}).encode())
    return path


def saved(facts: CpuFacts) -> Points:
    """Return the sweep that `save` kept on this machine; empty if there is none, or none that can be read.

    Warn, and do not read it, where other users may have written it.
    """
    try:
        return [(float(size), float(rate)) for size, rate in json.loads(_path(facts).read_text())["points"]]
    except UntrustedCacheError as error:
        warnings.warn(f"the saved measurement of this machine's caches is not read: {error}", stacklevel=2)
        return []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _path(facts: CpuFacts) -> Path:
    """Return the file of a sweep on this machine.

    Its name depends on the caches, as a virtual machine may move to another host, but not on the allowed cores.
    """
    caches = [(cache.level, cache.bytes, cache.sharers) for cache in facts.caches]
    machine = f"{platform.node()} {facts.name} {caches}"
    return cache_directory() / f"probe-{hashlib.sha256(machine.encode()).hexdigest()[:16]}.json"
