"""Compare fx-partition with other planners, on eight real graphs at three budgets each, by one scorer.

    pip install -c constraints.txt -e ".[dev,peers]"         (DS_BUILD_OPS=0 for DeepSpeed: no operator is compiled)
    python benchmarks/planner_peers.py [--graphs GPT-2 UNet ...]

For each planner and budget: k, the largest partition, the bytes cut, whether every partition fits the budget and no
result is needed before it is made, and the time that planning takes. Every assignment goes through `peers/scorer.py`,
which shares no code with fx-partition's planner; on our own plans its figures and the plan's must be equal byte for
byte, else the benchmark stops. A planner that is not installed, raises, or has no answer gets a row that says so.

`peers/*.py` say how each planner is asked, and what is done in its favour. Three of them take a budget and count less
than the footprint against it: where that does not fit, a row marked * is the best of what they make of smaller numbers.

Time: median of five runs after a warm-up (a warm-up of over a second stands alone), in this process (PiPPy in one of
its own), planning only. Capture is apart: export, and for us the analysis of memory. A planner that is given k is
asked for k upward, and all of its runs count.

The verdict lists each row of another planner that fits and has fewer partitions than ours, or as many and a smaller
largest one, or both equal and fewer bytes cut. None of the other planners claims to be exact. "fx-partition" is what
`fx_partition.plan` does; "trace order" is it without the search over orders, which takes most of its time.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from peers import block_partition, device_map, fx_accelerator, linear_balance, ours, size_threshold
from peers.case import Case, NoPlan, Planned, make_case, with_smaller_budgets
from peers.graphs import MIB, SPECS, build
from peers.scorer import Score
from tabulate import tabulate

OURS = "fx-partition"


@dataclass(frozen=True)
class Planner:
    """One planner.

    Attributes:
        name: its name in the tables.
        plan: makes its plan of a case for a budget.
        module, package: the module that must be there, and the package to install for it.
        partial: whether it counts less than the footprint against its budget. Where its answer does not fit, it gets
            smaller budgets.
    """

    name: str
    plan: Callable[[Case, int], Planned]
    module: str = "torch"
    package: str = "torch"
    partial: bool = False


PLANNERS = [
    Planner(OURS, ours.plan),
    Planner("fx-partition, trace order", ours.traced),
    Planner("fx-partition, greedy", ours.greedy),
    Planner("torch.fx accelerator_partitioner", fx_accelerator.plan, partial=True),
    Planner("accelerate infer_auto_device_map", device_map.plan, "accelerate", "accelerate", partial=True),
    Planner("accelerate, whole blocks", device_map.plan_whole_blocks, "accelerate", "accelerate", partial=True),
    Planner("torchgpipe blockpartition", block_partition.plan, "torchgpipe", "torchgpipe"),
    Planner("DeepSpeed partition_balanced", linear_balance.plan, "deepspeed", "deepspeed"),
    Planner("PiPPy split_on_size_threshold", size_threshold.plan, "pippy", "torchpippy", partial=True),
]


@dataclass(frozen=True)
class Row:
    """The answer of one planner for one graph and budget; without an answer there is no score, and a note says why."""

    planner: str
    graph: str
    budget: int
    score: Score | None = None
    seconds: float = 0.0
    note: str = ""

    @property
    def fits(self) -> bool:
        return self.score is not None and self.score.fits(self.budget)

    def cells(self) -> list[str]:
        if self.score is None:
            return [f"{self.budget / MIB:g}", self.planner, "", "", "", "", "", self.note]
        k, largest, cut = self.score.key
        edges = self.score.back_edges
        verdict = "yes" if self.fits else f"back edges: {edges}" if edges else "no"
        figures = [str(k), f"{largest / MIB:.2f}", f"{cut / 1024:.0f}", verdict, f"{self.seconds * 1e3:.1f}"]
        return [f"{self.budget / MIB:g}", self.planner, *figures, self.note]


def ask(planner: Planner, case: Case, budget: int) -> list[Row]:
    """Return a row, and a second one with a smaller budget where a planner does not fit."""
    if importlib.util.find_spec(planner.module) is None:
        note = f"not installed: pip install {planner.package}"
        return [Row(planner.name, case.graph.spec.name, budget, note=note)]
    first = _row(planner.name, partial(planner.plan, case, budget), case, budget)
    if not planner.partial or first.score is None or first.fits:
        return [first]
    return [first, _row(f"{planner.name}*", partial(with_smaller_budgets, planner.plan, case, budget), case, budget)]


def _row(name: str, plan: Callable[[], Planned], case: Case, budget: int) -> Row:
    """Return a row; an error of another planner becomes a note, and an error of ours is raised."""
    graph = case.graph.spec.name
    try:
        planned = plan()
    except NoPlan as reason:
        return Row(name, graph, budget, note=str(reason)[:80])
    except Exception as error:
        if name.startswith("fx-partition"):
            raise
        return Row(name, graph, budget, note=f"raises {type(error).__name__}: {error}".splitlines()[0][:80])
    return Row(name, graph, budget, case.score(planned.assignment), planned.seconds, planned.note)


def verdict(rows: list[Row]) -> list[str]:
    """Return, in words, where another planner is better than our exact one, or where our own plan does not fit."""
    found = []
    best = {(row.graph, row.budget): row.score for row in rows if row.planner == OURS}
    for row in rows:
        own = best[row.graph, row.budget]
        assert own is not None
        where = f"{row.graph} at {row.budget / MIB:g} MiB"
        if row.planner == OURS and not row.fits:
            found.append(f"{where}: our own plan does not fit. {row.note}")
        elif row.score is not None and row.fits and row.score.key < own.key:
            found.append(f"{where}, {row.planner}: {_figures(row.score)}; ours: {_figures(own)}")
    return found


def _figures(score: Score) -> str:
    return f"k {score.num_partitions}, max {score.max_bytes / MIB:.3f} MiB, cut {score.cut_bytes / 1024:.1f} KiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", choices=[spec.name for spec in SPECS], default=None)
    chosen = parser.parse_args().graphs
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"{_cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows: list[Row] = []
    for spec in SPECS:
        if chosen and spec.name not in chosen:
            continue
        start = time.perf_counter()
        graph = build(spec)
        exported = time.perf_counter() - start
        case = make_case(graph)
        here = [row for budget in spec.budget_bytes() for planner in PLANNERS for row in ask(planner, case, budget)]
        rows += here
        weights = case.chain.weight_bytes.sum() / MIB
        print(f"\n{spec.name}: {spec.shape}; {len(case.steps)} steps, {weights:.1f} MiB of weights")
        print(f"model and torch.export {exported:.2f} s; our capture and analysis {case.capture_seconds:.2f} s")
        headers = ["budget MiB", "planner", "k", "max MiB", "cut KiB", "fits", "plan ms", ""]
        print(tabulate([row.cells() for row in here], headers, disable_numparse=True, colalign=_ALIGN), flush=True)
    print("\nWhere a peer is better")
    print("\n".join(verdict(rows)) or "none")


_ALIGN = ("right", "left", "right", "right", "right", "left", "right", "left")


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
