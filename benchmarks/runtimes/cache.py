"""Measure how many bytes of a core's L2 are usable: read bandwidth against working set, and its knee.

Nominal is what Linux says of core 0. Usable is the knee of the curve: the largest working set that is still read at
`KEPT` of the bandwidth of sets that surely fit (an eighth to a half of nominal).
"""

from __future__ import annotations

import ctypes
import os
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch

from fx_partition.backends.threads.build_extension import compiled

KEPT = 0.8
_SYSFS = Path("/sys/devices/system/cpu")
_STEP = 512  # what the reader takes at a time
_READ = 1 << 26  # bytes of one measurement


def nominal_l2(core: int) -> int:
    """Return the bytes of a core's L2 that Linux reports; 1 MiB if it reports none."""
    for index in sorted((_SYSFS / f"cpu{core}" / "cache").glob("index*")):
        if (index / "level").read_text().strip() == "2":
            return int((index / "size").read_text().strip().removesuffix("K")) * 1024
    return 1 << 20


def bandwidths(core: int, rounds: int = 7) -> dict[int, float]:
    """Return bytes/s for working sets from an eighth to four times the nominal L2, in eighths of an octave.

    The calling thread is moved to ``core`` meanwhile. The median of interleaved rounds.
    """
    library = ctypes.CDLL(str(compiled(Path(__file__).with_name("cache_read.cpp"), ("-O3", "-march=native"))))
    library.read_seconds.restype = ctypes.c_double
    nominal = nominal_l2(core)
    sets = [int(nominal * 2 ** (i / 8)) // _STEP * _STEP for i in range(-24, 17)]
    buffers = {size: torch.ones(size + 64, dtype=torch.uint8) for size in sets}
    found: dict[int, list[float]] = {size: [] for size in sets}
    sink = ctypes.c_float()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        for _ in range(rounds):
            for size, buffer in buffers.items():
                start = ctypes.c_void_p((buffer.data_ptr() + 63) // 64 * 64)
                passes = _READ // size
                read = [library.read_seconds(start, ctypes.c_size_t(size), ctypes.c_size_t(n), ctypes.byref(sink))
                        for n in (1, passes)]  # fmt: skip
                found[size].append(passes * size / read[1])
    finally:
        os.sched_setaffinity(0, before)
    return {size: statistics.median(rates) for size, rates in found.items()}


def knee(curve: Mapping[int, float], nominal: int) -> int:
    """Return the usable bytes from bandwidths by working set: the largest set before the first that is read too slowly.

    Example: a set of 12 is read at less than 0.8 of the 100 that sets of 2 to 8 are read at::

        >>> knee({2: 100, 4: 101, 8: 99, 12: 70, 16: 30}, nominal=16)
        8
    """
    fitting = [rate for size, rate in curve.items() if nominal / 8 <= size <= nominal / 2]
    enough = KEPT * statistics.median(fitting)
    usable = min(curve)
    for size in sorted(curve):
        if curve[size] < enough and size > nominal / 2:
            break
        usable = size
    return usable
