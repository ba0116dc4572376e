"""Measure throughput, latency and hops on the ranks of a process group, and compare them with torch's pipelining.

    python benchmarks/distributed.py --quick
    python benchmarks/distributed.py [--ranks 2 4] [--model mlp] [--mib 4] [--batch 16] [--microbatches 1 4]
                                     [--rounds 7]

Ranks are processes of one thread each on this machine, connected by gloo over the loopback interface. They are pinned
in turn to the first two cores that do not share a cache, so four ranks share two cores and gain nothing over two. Each
process holds both sides of a case: `l2partition` on ranks, and `ScheduleGPipe` over an even split by hand whose stages
inductor compiles, with the same threads, allocator and microbatches. The sides run in turn, round after round.
Throughput is that of a stream of calls whose results stay on the last rank; latency is that of one call at a time whose
result returns to rank 0. `rank_runners.hops` explains hops, which are compared with bare sends. A figure is the median
over the rounds, a ratio the median of the ratios within a round. If a target is missed, the exit status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys

import torch
from rank_runners.runners import SIDES
from rank_runners.targets import HOP_WAYS, HopRow, Row, judge
from rank_runners.workers import RankCrew
from runtimes.models import Case, size_of
from runtimes.processes import two_cores
from tabulate import tabulate
from tqdm import tqdm

KINDS = ("mlp", "transformer")
HOP_BYTES = (4 << 10, 64 << 10, 1 << 20, 4 << 20)
TURN_S = 0.4  # seconds of one side's turn
ALONE = 15  # calls one at a time, in a turn
HOP_TURN_S = 0.1
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),  # memory once had is kept, in every process
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of compilers stays behind
    "GLOO_SOCKET_IFNAME": "lo",
}


def measure(crew: RankCrew, ranks: int, case: Case, microbatches: int, rounds: int) -> Row:
    """Run both sides in turn, round after round; the first calls decide how many make a turn."""
    crew.build(case, microbatches)
    counts = {}
    for side in SIDES:
        rate = crew.rate(side, 8)
        counts[side] = max(8, int(rate * TURN_S))
        crew.latency(side, 1)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    latencies: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        for side in list(SIDES) if turn % 2 == 0 else list(reversed(SIDES)):
            rates[side].append(crew.rate(side, counts[side]))
            latencies[side].append(crew.latency(side, ALONE))
    return Row(case, ranks, microbatches, rates, latencies)


def measure_hop(crew: RankCrew, nbytes: int, rounds: int) -> HopRow:
    """Measure all ways in turn, round after round; the first round decides how many hops make a turn."""
    crew.build_hops(nbytes)
    count = max(10, int(HOP_TURN_S / crew.hops(10)["bare"]))
    found = [crew.hops(count) for _ in range(rounds)]
    return HopRow(nbytes, {way: [one[way] for one in found] for way in HOP_WAYS})


def show(rows: list[Row], hops: list[HopRow], style: str) -> bool:
    """Print the results; return whether every target is met."""
    if rows:
        titles = ("model", "MiB", "batch", "ranks", "microbatches", *SIDES, "ratio")
        for words, unit in (("Throughput, calls a second", 1.0), ("Latency of one call at a time, microseconds", 1e6)):
            values = [(row, row.rates if unit == 1.0 else row.latencies) for row in rows]
            table = [
                (row.case.kind, f"{size_of(row.case.model()) / 2**20:.2f}", row.case.batch, row.ranks, row.microbatches,
                 *(f"{statistics.median(found[side]) * unit:.0f}" for side in SIDES),
                 f"{row.throughput if unit == 1.0 else row.latency:.2f}")
                for row, found in values
            ]  # fmt: skip
            print(f"\n{words}\n")
            print(tabulate(table, headers=titles, tablefmt=style, disable_numparse=True))
    if hops:
        table = [
            (row.nbytes, *(f"{statistics.median(row.seconds[way]) * 1e6:.0f}" for way in HOP_WAYS),
             *(f"{row.ratio(way):.2f}" for way in HOP_WAYS[1:]))
            for row in hops
        ]  # fmt: skip
        print("\nA hop between two ranks, microseconds\n")
        print(tabulate(table, headers=("bytes", *HOP_WAYS, "team / bare", "call / bare"), tablefmt=style,
                       disable_numparse=True))  # fmt: skip
    verdicts = judge(rows, hops)
    print("\nTargets\n")
    lines = [(v.words, v.bound, f"{v.value:.2f}", v.where, "met" if v.met else "missed") for v in verdicts]
    print(tabulate(lines, headers=("target", "asked", "measured", "decided by", ""), tablefmt=style))
    return all(verdict.met for verdict in verdicts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one model on two ranks, whole calls, two sizes of a hop")
    parser.add_argument("--ranks", nargs="*", type=int, default=[2, 4], help="numbers of ranks; none: hops alone")
    parser.add_argument("--model", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--mib", nargs="+", type=float, default=[4.0], help="weights of a model")
    parser.add_argument("--batch", type=int, default=16, help="rows of a call")
    parser.add_argument("--microbatches", nargs="+", type=int, default=[1, 4], help="of a call, on both sides")
    parser.add_argument("--hop-bytes", nargs="*", type=int, default=list(HOP_BYTES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    options = parser.parse_args()
    if options.quick:
        options.ranks, options.model, options.microbatches = [2], ["mlp"], [1]
        options.hop_bytes = [HOP_BYTES[0], HOP_BYTES[-1]]
    return options


def main() -> int:
    options = parse()
    cores = two_cores()
    os.environ.update(ENVIRONMENT)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, gloo, ranks on cores {cores}")
    if max(options.ranks, default=0) > len(cores):
        print("more than two ranks share these cores: no gain over two is to be expected")
    print(", ".join(f"{name}={value}" for name, value in ENVIRONMENT.items()))
    rows, hops = [], []
    for ranks in options.ranks:
        cases = list(itertools.product(options.model, options.mib, options.microbatches))
        with RankCrew(ranks, cores) as crew:
            for kind, mib, microbatches in tqdm(cases, desc=f"{ranks} ranks", disable=None):
                case = Case(kind, mib, int(mib * 2**20), options.batch, "float32")
                row = measure(crew, ranks, case, microbatches, options.rounds)
                tqdm.write(f"{row.name}: throughput {row.throughput:.2f}, latency {row.latency:.2f}", file=sys.stderr)
                rows.append(row)
    if options.hop_bytes:
        with RankCrew(2, cores) as crew:
            hops = [measure_hop(crew, nbytes, options.rounds) for nbytes in tqdm(options.hop_bytes, disable=None)]
    return 0 if show(rows, hops, "github" if options.markdown else "simple") else 1


if __name__ == "__main__":
    sys.exit(main())
