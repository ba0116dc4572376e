"""Measure throughput and latency of pipelines on two cores, and compare them with other ways to use the cores.

    python benchmarks/runtime.py --quick
    python benchmarks/runtime.py [--model mlp] [--size 1 2] [--batch 1] [--dtype float32] [--markdown]

The models have 0.5 to 16 times the usable L2 of a core, which is measured first. All ways (see `runtimes.workers`) run
in turn, one at a time, round after round. Each has its own process, weights and kernels, with the same allocator and
OpenMP settings; only the cores that a process may use differ. A figure is the median over the rounds, a ratio the
median of the ratios within a round. Without filters it runs all sizes and batches in float32, and batches 1 and 16 of
one and two L2 in bfloat16. If a target is missed, the exit status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys

import torch
from runtimes.cache import bandwidths, knee, nominal_l2
from runtimes.models import KINDS, Case, size_of
from runtimes.processes import two_cores
from runtimes.runners import MICROBATCHES
from runtimes.targets import Row, judge
from runtimes.workers import AUTO, COPIES, CUT, OURS, WAYS, Crew
from tabulate import tabulate
from tqdm import tqdm

SIZES, BATCHES, DTYPES = (0.5, 1.0, 2.0, 4.0, 16.0), (1, 4, 16), ("float32", "bfloat16")
TURN_S = 0.15  # seconds of one way's turn
ALONE = 15  # requests one at a time, in a turn
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),  # memory once had is kept, in every process
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "OMP_NUM_THREADS": "2",
    "KMP_BLOCKTIME": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of compilers stays behind
    "GLOO_SOCKET_IFNAME": "lo",
}


def cases(options: argparse.Namespace, usable: int) -> list[Case]:
    """Return the cases that the options ask for, in the order of the table."""
    found = []
    for kind, dtype, size, batch in itertools.product(options.model, options.dtype, options.size, options.batch):
        named = options.named_dtype
        if dtype == "float32" or named or (size in (1.0, 2.0) and batch in (1, 16)):
            found.append(Case(kind, size, int(size * usable), batch, dtype))
    return found


def measure(crew: Crew, case: Case, rounds: int) -> Row:
    """Run all ways in turn, round after round; the first round decides how many requests make a turn."""
    crew.build(case)
    counts = {}
    for name in WAYS:
        rate = crew.rate(name, MICROBATCHES)
        rate = crew.rate(name, max(MICROBATCHES, int(rate * TURN_S / 4)))
        counts[name] = max(2 * MICROBATCHES, int(rate * TURN_S) // MICROBATCHES * MICROBATCHES)
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    latencies: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds):
        order = list(WAYS) if turn % 2 == 0 else list(reversed(WAYS))
        for name in order:
            rates[name].append(crew.rate(name, counts[name]))
            latencies[name].append(crew.latency(name, ALONE))
    return Row(case, size_of(case.model()), rates, latencies)


def ratios(rows: list[Row], style: str) -> str:
    """Return the table of the automatic pipeline over each other way, and of cutting over copying."""
    pairs = {f"auto / {name}": (AUTO, name) for name in WAYS if name not in OURS} | {"cut / copies": (CUT, COPIES)}
    table = [
        (
            row.case.name,
            f"{row.weight_bytes / 2**20:.2f}",
            *(f"{row.ratio(ours, [other]):.2f}" for ours, other in pairs.values()),
        )
        for row in rows
    ]
    return tabulate(table, headers=("model", "weights, MiB", *pairs), tablefmt=style, disable_numparse=True)


def show(rows: list[Row], usable: int, style: str) -> bool:
    """Print the results; return whether every target is met."""
    print("\nThroughput of the automatic pipeline over that of others, and of the cut over copies of the whole\n")
    print(ratios(rows, style))
    for words, unit, values in (
        ("Throughput, requests a second", 1.0, lambda row: row.rates),
        ("Latency of one request at a time, microseconds", 1e6, lambda row: row.latencies),
    ):
        figures = [
            (row.case.name, *(f"{statistics.median(values(row)[name]) * unit:.0f}" for name in WAYS)) for row in rows
        ]
        print(f"\n{words}\n")
        print(tabulate(figures, headers=("model", *WAYS), tablefmt=style))
    verdicts = judge(rows, usable)
    print("\nTargets, of the automatic pipeline\n")
    table = [
        (
            verdict.target.words,
            f"{verdict.target.floor:g}",
            f"{verdict.value:.2f}",
            verdict.where,
            f"{verdict.reached} of {verdict.rows}",
            "met" if verdict.met else f"missed by {(1 - verdict.value / verdict.target.floor) * 100:.0f}%",
        )
        for verdict in verdicts
    ]
    print(tabulate(table, headers=("target", "at least", "measured", "decided by", "rows", ""), tablefmt=style))
    return all(verdict.met for verdict in verdicts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the multilayer perceptron of one and two L2, batch 1")
    parser.add_argument("--model", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--size", nargs="+", type=float, default=list(SIZES), help="in units of the usable L2")
    parser.add_argument("--batch", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--usable", type=int, help="bytes of usable L2, measured before")
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    options = parser.parse_args()
    if options.quick:
        options.model, options.size, options.batch, options.dtype = ["mlp"], [1.0, 2.0], [1], ["float32"]
    options.named_dtype = options.dtype is not None
    options.dtype = options.dtype or list(DTYPES)
    return options


def main() -> int:
    options = parse()
    cores = two_cores()
    os.sched_setaffinity(0, cores)  # for all that follows, on a machine of more
    os.environ.update(ENVIRONMENT)
    nominal = nominal_l2(cores[0])
    usable = options.usable or knee(bandwidths(cores[0]), nominal)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, cores {cores}")
    print(f"L2 of a core: {nominal / 2**20:.2f} MiB nominal, {usable / 2**20:.2f} MiB usable ({usable} bytes)")
    print(", ".join(f"{name}={value}" for name, value in ENVIRONMENT.items()))
    with Crew(cores, usable) as crew:
        rows = [measure(crew, case, options.rounds) for case in tqdm(cases(options, usable), disable=None)]
    return 0 if show(rows, usable, "github" if options.markdown else "simple") else 1


if __name__ == "__main__":
    sys.exit(main())
