"""Measure the time to hand a request from one stage to the next: in flight, parked, and the idle pipeline's.

    python benchmarks/hop.py [--rounds 7]

A hop is the time from the end of a stage to the start of the next one on another core, from the stages' own stamps. It
counts where the next stage was waiting already. *In flight*: requests one after the other, so that workers spin.
*Parked*: one request at a time after a pause, so that they sleep; a bare ping-pong of two C++ threads, parked on
futexes and pinned to the same cores, with the same pause and the same work before it wakes the other, is measured in
turn. *Idle*: processor time of the whole process while a started pipeline has nothing to do.

On two cores the 90th percentile in flight is the scheduler's and not the hop's: the last stage wakes the main thread
for each request that it finishes, and the main thread then takes that stage's core: the last stage loses its core far
more often than the first (``nonvoluntary_ctxt_switches`` in ``/proc/self/task``), and seldom while the main thread
sleeps.

Targets: a hop in flight at most 10 us, parked at most 1.3 times the ping-pong, idle at most 1 ms of processor time in
a second. A target that is missed makes the exit status 1.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

from fx_partition.backends.pipeline import Pipeline, pipeline
from fx_partition.backends.threads.build_extension import compiled
from fx_partition.backends.threads.runtime import ThreadRequest
from fx_partition.hardware.cores import core_groups, format_group

IN_FLIGHT_US, PARKED_RATIO, IDLE_MS = 10.0, 1.3, 1.0
PAUSE_S = 0.002
WIDTH, LAYERS = 64, 8
IN_FLIGHT, ALONE = 4000, 100  # requests of a round


class Hops(NamedTuple):
    """The microseconds of each hop, and of the parts that it consists of."""

    waits: list[float]
    stages: list[float]


def start(pipe: Pipeline, x: Tensor) -> ThreadRequest:
    pending, _ = pipe._start((x,), {})
    return pending


def hops(times: Sequence[Sequence[tuple[int, int]]]) -> Hops:
    """Return the hops of consecutive requests into waiting stages, from (start, end) of each stage in nanoseconds.

    Example: the second request's hop counts, as stage 1 was done with the first before stage 0 was with the second;
    the third's does not::

        >>> hops([[(0, 10), (11, 20)], [(10, 30), (33, 90)], [(30, 40), (91, 99)]]).waits
        [0.003]
    """
    waits = [
        (after[1][0] - after[0][1]) / 1e3 for before, after in itertools.pairwise(times) if before[1][1] < after[0][1]
    ]
    return Hops(waits, [(stop - begin) / 1e3 for request in times for begin, stop in request])


def in_flight(pipe: Pipeline, requests: list[Tensor]) -> Hops:
    """Run with as many requests in flight as allowed, and read the hops of each when it is finished."""
    pending = [start(pipe, requests[i % len(requests)]) for i in range(IN_FLIGHT)]
    for request in pending:
        request.wait()
    return hops([request.times for request in pending])


def parked(pipe: Pipeline, requests: list[Tensor]) -> Hops:
    times = []
    for i in range(ALONE):
        time.sleep(PAUSE_S)
        request = start(pipe, requests[i % len(requests)])
        request.wait()
        times.append(request.times)
    return hops(times)


def ping_pong(cores: Sequence[int], work_us: float) -> list[float]:
    """Return the microseconds to wake a thread on the second core from the first."""
    library = ctypes.CDLL(str(compiled(Path(__file__).with_name("ping_pong.cpp"))))
    result = (ctypes.c_int64 * ALONE)()
    pause, work = ctypes.c_int64(int(PAUSE_S * 1e9)), ctypes.c_int64(int(work_us * 1e3))
    library.one_way(cores[0], cores[1], ALONE, pause, work, result)
    return [ns / 1e3 for ns in result]


def idle() -> float:
    """Return the milliseconds of processor time that this process uses in a second."""
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1)
    return (time.process_time() - before) * 1e3


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 90th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=10)[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    groups = core_groups()
    if len(groups) < 2:
        print("two cores with their own caches are needed", file=sys.stderr)
        return 2
    cores = [group[0] for group in groups[:2]]
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).eval()
    requests = [torch.randn(1, WIDTH) for _ in range(64)]
    devices = [format_group((core,)) for core in cores]
    flying, asleep = Hops([], []), Hops([], [])
    bare: list[float] = []
    with pipeline(model, requests[0], devices=devices) as pipe:
        everywhere = os.sched_getaffinity(0)
        for turn in range(options.rounds + 1):
            loaded = in_flight(pipe, requests)
            os.sched_setaffinity(0, cores[:1])  # the core of the second stage sleeps until it is woken, in both
            alone = parked(pipe, requests)
            woken = ping_pong(cores, statistics.median(alone.stages))
            os.sched_setaffinity(0, everywhere)
            if turn:  # the first warms up
                flying.waits.extend(loaded.waits)
                asleep.waits.extend(alone.waits)
                bare.extend(woken)
        unused = idle()
    (hop, hop_90), (wake, wake_90), (least, least_90) = map(quantiles, (flying.waits, asleep.waits, bare))
    print(f"torch {torch.__version__}, cores {cores}, {options.rounds} rounds; a stage takes "
          f"{statistics.median(loaded.stages):.0f} us")  # fmt: skip
    rows = [
        ("hop in flight, us", f"{hop:.2f}", f"{hop_90:.2f}", len(flying.waits), f"{IN_FLIGHT_US:g}",
         hop <= IN_FLIGHT_US),
        ("ping-pong, us", f"{least:.2f}", f"{least_90:.2f}", len(bare), "", None),
        ("hop parked, us", f"{wake:.2f}", f"{wake_90:.2f}", len(asleep.waits), f"{PARKED_RATIO * least:.2f}",
         wake <= PARKED_RATIO * least),
        ("idle, ms of processor a second", f"{unused:.3f}", "", 1, f"{IDLE_MS:g}", unused <= IDLE_MS),
    ]  # fmt: skip
    words = {True: "met", False: "missed", None: ""}
    table = [(*row[:-1], words[row[-1]]) for row in rows]
    print(tabulate(table, headers=("", "median", "90th percentile", "samples", "at most", "")))
    return 0 if all(row[-1] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
