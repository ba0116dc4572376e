"""Compare predicted with measured times of stages and whole models, on one core of this machine.

    python benchmarks/cost_model.py
    python benchmarks/cost_model.py --model mlp --mib 0.5 64 --batch 1

First, loops that are not part of any model measure the core (`predicted.core`): bandwidths, the rate of a matrix
product, the time of a call and of a kernel. Nothing is fitted to the models. Then inductor compiles each model of each
size as a whole, and in the two stages of a plan for two devices, each stage by itself. Each is called again and again,
as in a stream. The prediction is `fx_partition.simulate` of the same plan on the measured core. Sizes span L2, L3 and
memory. The process stays on one core and keeps its allocated memory.

The output has the figures of the core, all rows, and the median of the errors |predicted / measured - 1|, by model and
by the memory that holds the weights. The exit code is 1 if the median over all rows is above 20%.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from predicted.core import Core, measure_core, median_seconds
from runtimes.models import KINDS, Case, size_of
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import fx_partition
from fx_partition import Link, Plan

MIB = 2**20
TARGET = 0.20
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "OMP_NUM_THREADS": "1"}


class Row(NamedTuple):
    """The time of a whole model, or of one of its two stages."""

    case: Case
    part: str
    held: int  # bytes of its footprint
    bound: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return abs(self.predicted / self.measured - 1)


def rows_of(case: Case, core: Core) -> Iterator[Row]:
    """Return the rows of the whole model and of its stages."""
    model, x = case.model(), case.requests(1)[0]
    for devices in (1, 2):
        torch.compiler.reset()
        plan = fx_partition.plan(model, x, devices=devices, order="trace")
        predicted = fx_partition.simulate(
            model, x, plan=plan, device=core.device, link=Link(0.0), overheads=core.overheads
        )
        times = measured(model, x, plan)
        for i, (partition, use, seconds) in enumerate(zip(plan.partitions, predicted.stages, times, strict=True)):
            part = "whole" if plan.num_partitions == 1 else f"stage {i}"
            yield Row(case, part, partition.total_bytes, use.bound, seconds, use.seconds)


def measured(model: nn.Module, x: torch.Tensor, plan: Plan) -> list[float]:
    """Return the seconds of each partition's compiled code, called by itself on the values that it receives."""
    cut = fx_partition.split(model, x, plan=plan)
    given: list[tuple[torch.Tensor, ...]] = []
    stages = [getattr(cut, f"partition_{i}") for i in range(plan.num_partitions)]
    hooks = [stage.register_forward_pre_hook(lambda _, args: given.append(args)) for stage in stages]
    cut(x)
    for hook in hooks:
        hook.remove()
    compiled = [torch.compile(stage) for stage in stages]
    return [median_seconds(lambda run=run, args=args: run(*args)) for run, args in zip(compiled, given, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--mib", nargs="+", type=float, default=[0.5, 2, 8, 32, 128], help="weights of a model")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--sweep-seconds", type=float, default=10.0)
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # libraries read them as they start
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with torch.no_grad():
        try:
            core = measure_core(options.sweep_seconds)
        except ValueError as error:
            parser.error(str(error))
        _print_core(core)
        cases = [
            Case(kind, mib, int(mib * MIB), batch, "float32")
            for kind, mib, batch in itertools.product(options.model, options.mib, options.batch)
        ]
        rows = [row for case in tqdm(cases, disable=None) for row in rows_of(case, core)]
    return _print(rows, core)


def _print_core(core: Core) -> None:
    device, overheads = core.device, core.overheads
    print(f"torch {torch.__version__}, {platform.machine()}, one core")
    print(
        f"on chip {device.onchip_bandwidth / 1e9:.1f} GB/s, {device.usable_bytes / MIB:.1f} of "
        f"{device.onchip_bytes / MIB:g} MiB usable, memory {device.memory_bandwidth / 1e9:.1f} GB/s, peak "
        f"{device.peak_flops / 1e9:.0f} GFLOP/s, call {overheads.call * 1e6:.1f} us, kernel "
        f"{overheads.kernel * 1e6:.2f} us"
    )


def _print(rows: Sequence[Row], core: Core) -> int:
    table = [
        (row.case.kind, f"{size_of(row.case.model()) / MIB:.2f}", row.case.batch, row.part, f"{row.held / MIB:.2f}",
         row.bound, f"{row.measured * 1e6:.0f}", f"{row.predicted * 1e6:.0f}",
         f"{row.predicted / row.measured - 1:+.0%}")
        for row in rows
    ]  # fmt: skip
    headers = ["model", "MiB", "batch", "part", "holds, MiB", "bound by", "measured, us", "predicted, us", "error"]
    print(tabulate(table, headers=headers, disable_numparse=True), end="\n\n")
    groups: dict[str, list[float]] = {"all": []}
    for row in rows:
        lies = "in the cache" if row.held <= core.device.usable_bytes else "beyond the cache"
        for name in ("all", f"{row.case.kind}, batch {row.case.batch}", lies):
            groups.setdefault(name, []).append(row.error)
    summary = [
        (name, len(found), f"{statistics.median(found):.1%}", f"{max(found):.0%}") for name, found in groups.items()
    ]
    print(tabulate(summary, headers=["rows", "number", "median error", "largest"], disable_numparse=True))
    missed = statistics.median(groups["all"]) > TARGET
    print(f"\nMedian error of all rows at most {TARGET:.0%}: {'missed' if missed else 'met'}.")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
