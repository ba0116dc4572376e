"""Check whether `fx_partition.probe` finds the same figures each time.

    python benchmarks/probe_repeat.py

Each run has its own process, so that no two have their buffers on the same pages. Nothing is kept for `detect`.
It prints every figure of the probe, run by run, and its spread, the largest over the smallest value minus one; and the
seconds of a run, without the start of Python. A figure that only some runs found has no spread, and misses the target.
With `--busy N`, N processes compute at the same time (they read no memory).

The exit code is 1 if a spread is above 15%, or a run takes more than 20 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tabulate import tabulate

SPREAD, SECONDS = 0.15, 20.0
# The unit of a printed figure, and the unit's size.
UNITS = {"usable_bytes": ("MiB", 2**20), "onchip_bandwidth": ("GB/s", 1e9), "memory_bandwidth": ("GB/s", 1e9)}
RUN = """
import json, sys, time
import fx_partition
began = time.perf_counter()
found = fx_partition.probe(seconds=float(sys.argv[1]))
took = time.perf_counter() - began
figures = {f"{d.name} {name}": figure.value for d in found.devices for name, figure in d.figures.items()
           if figure.source.startswith("fx_partition.probe")}
print(json.dumps({"seconds": took, "figures": figures}))
"""


def run(seconds: float) -> tuple[float, dict[str, float]]:
    """Run one probe in a process; return its seconds, and its figures as "cpu:L3 usable_bytes"."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(seconds)],
            env=os.environ | {"FX_PARTITION_CACHE_DIR": folder}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    found = json.loads(done.stdout)
    return found["seconds"], found["figures"]


def spreads(runs: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Return the largest over the smallest value of each figure, minus one; None where a run lacks it."""
    names = dict.fromkeys(name for figures in runs for name in figures)
    values = {name: [figures[name] for figures in runs if name in figures] for name in names}
    return {
        name: max(found) / min(found) - 1 if len(found) == len(runs) else None for name, found in values.items()
    }


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Start processes that compute."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one probe, as `fx-partition probe` takes it")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that compute at the same time")
    arguments = parser.parse_args()
    with busy(arguments.busy):
        times, runs = zip(*(run(arguments.seconds) for _ in range(arguments.runs)), strict=True)
    found = spreads(runs)
    rows = []
    for name, spread in found.items():
        unit, scale = UNITS[name.split()[1]]
        cells = [f"{figures[name] / scale:.2f}" if name in figures else "-" for figures in runs]
        rows.append((name, unit, *cells, "not in all" if spread is None else f"{spread:.1%}"))
    rows.append(("time of the probe", "s", *(f"{seconds:.1f}" for seconds in times), ""))
    headers = ("figure", "unit", *(f"run {i}" for i in range(1, len(runs) + 1)), "spread")
    align = ("left", "left", *["right"] * (len(runs) + 1))
    print(tabulate(rows, headers=headers, disable_numparse=True, colalign=align))
    missed = [name for name, spread in found.items() if spread is None or spread > SPREAD]
    missed += ["time of the probe"] if max(times) > SECONDS else []
    print(f"\nMissed: {', '.join(missed)}." if missed else "\nAll targets are met.")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
