"""Measure what the backend adds to a call: one partition against inductor, each further in-line stage, watched sizes.

    python benchmarks/overhead.py [--rounds 60] [--calls 300]

The model is tiny, so that the call itself is what is timed. Variants are timed in turn, round after round, in one
process with the same threads and allocator; each figure is the median over the rounds, a ratio the median of the
ratios within a round. Targets: one partition within 3% of ``backend="inductor"``; each further stage at most 8 us; at
most 1 us to look whether the plan fits the sizes of a call, where they are symbolic.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate

import fx_partition
from fx_partition.report.compiled_plans import compiled_graphs

STAGES = (1, 2, 3, 4, 6)


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(12))).eval()


def compiled(stages: int, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the model compiled into a number of in-line stages, or by inductor if the number is 0."""
    model = build()
    if stages == 0:
        run = torch.compile(model, backend="inductor")
    else:
        devices = ["cpu"] * stages
        options = {"cache_bytes": "1GiB" if stages == 1 else 1, "devices": devices}
        run = torch.compile(model, backend="l2partition", options=options)
    run(x)
    if stages:
        (graph,) = compiled_graphs(model)
        assert graph.plan.num_partitions == stages, (graph.plan.num_partitions, stages)
    return run


def symbolic(replan: bool, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the model in one stage with symbolic sizes, which are watched; with ``replan`` guards stand for that."""
    torch._dynamo.reset()
    options = {"cache_bytes": "1GiB", "replan": replan}
    run = torch.compile(build(), backend="l2partition", dynamic=True, options=options)
    run(x)
    return run


def watching(x: torch.Tensor, rounds: int, calls: int) -> float:
    """Return the microseconds that a call takes longer where its sizes are watched."""
    watched, bare = symbolic(False, x), symbolic(True, x)
    more = [seconds(watched, x, calls) - seconds(bare, x, calls) for _ in range(rounds + 3)]
    return statistics.median(more[3:]) * 1e6


def watching_split(x: torch.Tensor, rounds: int, calls: int) -> float:
    """Return the microseconds that a call of a split module takes longer where its sizes are watched.

    Both modules check that the sizes are in the range of the trace.
    """
    rows = ({0: torch.export.Dim("rows", min=2, max=4096)},)
    plans: tuple[dict[str, Any], ...] = ({"cache_bytes": "1GiB"}, {"devices": 1})  # the second has no budget
    watched, bare = (fx_partition.split(build(), x, dynamic_shapes=rows, **how) for how in plans)
    more = [seconds(watched, x, calls) - seconds(bare, x, calls) for _ in range(rounds + 3)]
    return statistics.median(more[3:]) * 1e6


def seconds(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run(x)
    return (time.perf_counter() - start) / calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(2, 16)
    with torch.no_grad():
        variants = {stages: compiled(stages, x) for stages in (0, *STAGES)}
        times: dict[int, list[float]] = {stages: [] for stages in variants}
        for _ in range(options.rounds + 3):
            for stages, run in variants.items():
                times[stages].append(seconds(run, x, options.calls))
        watch = watching(x, options.rounds, options.calls)
        split = watching_split(x, options.rounds, options.calls)
    times = {stages: rounds[3:] for stages, rounds in times.items()}  # the first three warm up
    rows = []
    base = times[1]
    for stages, rounds in times.items():
        ratio = statistics.median(t / i for t, i in zip(rounds, times[0], strict=True))
        further = [(t - b) / (stages - 1) * 1e6 for t, b in zip(rounds, base, strict=True)] if stages > 1 else []
        name = "inductor" if stages == 0 else f"l2partition, {stages} stage{'s' * (stages > 1)}"
        each = f"{statistics.median(further):.2f}" if further else ""
        rows.append((name, f"{statistics.median(rounds) * 1e6:.1f}", f"{ratio:.3f}", each))
    machine = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {machine}, 1 thread, median of {options.rounds}")
    print(tabulate(rows, headers=("variant", "us a call", "ratio to inductor", "us each further stage")))
    one = float(rows[1][2])
    worst = max(float(row[3]) for row in rows if row[3])
    ok = one <= 1.03 and worst <= 8 and max(watch, split) <= 1
    verdict = "ok" if ok else "missed"
    print(
        f"{verdict}: one partition {one:.3f} of inductor (<= 1.03), a further stage {worst:.2f} us (<= 8), "
        f"watching sizes {watch:.2f} us, of a split module {split:.2f} us (<= 1)"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
