"""Edge TPUs: does the planner choose as measurements would, and does the simulator predict them?

    python benchmarks/edgetpu.py

The measurements are those of `data/edgetpu_fc.csv` (source and licence: `data/README.md`): int8 networks
64 -> N -> N -> N -> N -> 10 on one to four devices. Nothing is measured here, so the figures are the same everywhere.

The device is the record "EdgeTPU"; the constants of its runtime are fitted, on the eight rows of `FITTED` alone: the
call of a device, its bandwidth on chip and off chip, what a call takes that fetches weights, and a hop. With several
devices all of that but the first two passes one after another over the bus of one host. All other rows are held out.

Printed: the constants; how far predictions are off, by kind of row; pairs of rows that are ranked wrongly; the
planner's choices. The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tabulate import tabulate
from torch import nn

import fx_partition
from fx_partition import Device, Link, Overheads, Plan

MIB = 2**20
LAYERS = 5

#: The rows that constants are fitted on: (N, devices, segmentation). Two of each kind that constants tell apart, in the
#: lower and in the upper half of their range where there are two.
FITTED = (
    (620, 1, "single"), (1220, 1, "single"),          # a call, and bytes on chip
    (1820, 1, "single"), (2420, 1, "single"),         # one device that spills
    (1220, 2, "balanced"), (1220, 3, "equal_layers"),  # hops
    (2300, 2, "balanced"), (2300, 3, "equal_layers"),  # several devices, one of which spills
)  # fmt: skip


class Row(NamedTuple):
    """One measurement: milliseconds of an inference, and the layers of each segment."""

    hidden: int
    tpus: int
    segmentation: str
    cut: tuple[int, ...]
    ms: float

    @property
    def name(self) -> tuple[int, int, str]:
        return self[:3]


class Layer(nn.Module):
    """An int8 layer whose weight has 64, 128, .. rows: the device's compiler rounds them up."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = torch.zeros(-(-outputs // 64) * 64, inputs, dtype=torch.int8)
        self.outputs, self.weight = outputs, nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)[:, : self.outputs]


def network(hidden: int) -> nn.Sequential:
    """64 -> N -> N -> N -> N -> 10."""
    return nn.Sequential(Layer(64, hidden), *(Layer(hidden, hidden) for _ in range(3)), Layer(hidden, 10))


def sizes(hidden: int) -> list[float]:
    """MiB of each layer's weight."""
    return [layer.weight.nbytes / MIB for layer in network(hidden)]


def read(path: Path) -> list[Row]:
    """The rows but the profiled ones, which were chosen by measuring."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["segmentation"] != "profiled"]
    return [_row(row) for row in rows]


def _row(row: Mapping[str, str]) -> Row:
    hidden, tpus, segmentation = int(row["hidden"]), int(row["tpus"]), row["segmentation"]
    on, off = (np.atleast_1d(json.loads(row[column])) for column in ("onchip_mib", "offchip_mib"))
    layers = sizes(hidden)
    if segmentation == "balanced" and tpus == 2 and hidden >= 2020:
        # The memory columns describe layers 0-3 and 4, of which 8 MiB and more would be fetched: 22 ms and more. The
        # times are of a cut of which one layer is fetched, as when the largest segment is as small as possible.
        cut = min(cuts(tpus), key=lambda cut: max(parts(layers, cut)))
    else:
        cut = min(cuts(tpus), key=lambda cut: np.abs(np.array(parts(layers, cut)) - (on + off)).sum())
        assert np.allclose(parts(layers, cut), on + off, rtol=0.03), row
    return Row(hidden, tpus, segmentation, cut, float(row["ms_per_inference"]))


def cuts(tpus: int) -> Iterator[tuple[int, ...]]:
    """All ways to cut the layers: how many there are in each segment."""
    for inner in itertools.combinations(range(1, LAYERS), tpus - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *inner, LAYERS)))


def parts(layers: Sequence[float], cut: Sequence[int]) -> list[float]:
    """The sum of each segment."""
    ends = itertools.accumulate(cut)
    return [sum(layers[end - count : end]) for count, end in zip(cut, ends, strict=True)]


def fetched(layers: Sequence[float], cut: Sequence[int], usable: float) -> list[float]:
    """What of each segment is not on chip: layers that do not fit, each taken in order, whole or not at all."""
    found = []
    for count, end in zip(cut, itertools.accumulate(cut), strict=True):
        room, off = usable, 0.0
        for size in layers[end - count : end]:
            room, off = (room - size, off) if size <= room else (room, off + size)
        found.append(off)
    return found


@dataclass(frozen=True)
class Constants:
    """What is fitted: the device with its bandwidths, its overheads, the link to the host."""

    device: Device
    overheads: Overheads
    link: Link


def fit(rows: Sequence[Row]) -> Constants:
    """Least squares of relative errors over `FITTED`.

    One device: call + bytes on chip / bandwidth + (fetch + bytes off chip / bandwidth). Several: a hop for each, and
    what is fetched. That is what the simulator comes to for these rows, written as a linear system.
    """
    device = fx_partition.device("EdgeTPU")
    chosen = [row for row in rows if row.name in FITTED]
    assert len(chosen) == len(FITTED)
    table, times = [], []
    for row in chosen:
        layers = sizes(row.hidden)
        off = sum(fetched(layers, row.cut, device.usable_bytes / MIB))
        alone = row.tpus == 1
        terms = [alone, alone * (sum(layers) - off), off, off > 0, 0 if alone else row.tpus]
        table.append([term / row.ms for term in terms])
        times.append(1.0)
    call, onchip, offchip, fetch, hop = np.linalg.lstsq(np.array(table, float), np.array(times), rcond=None)[0] / 1e3
    return Constants(
        replace(device, onchip_bandwidth=MIB / onchip, memory_bandwidth=MIB / offchip),
        Overheads(call=call, fetch=fetch),
        Link(latency=hop, shared=True),
    )


def predict(rows: Sequence[Row], constants: Constants) -> dict[tuple[int, int, str], float]:
    """Milliseconds of each row, by the simulator."""
    found: dict[tuple[int, int, str], float] = {}
    for hidden, group in itertools.groupby(sorted(rows), key=lambda row: row.hidden):
        program = exported(hidden)
        known: dict[tuple[int, ...], float] = {}
        for row in group:
            if row.cut not in known:
                known[row.cut] = milliseconds(cut_plan(program, row.cut), program, constants)
            found[row.name] = known[row.cut]
    return found


def exported(hidden: int) -> torch.fx.GraphModule:
    program = torch.export.export(network(hidden), (torch.zeros(1, 64, dtype=torch.int8),))
    graph = program.module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    return graph


def cut_plan(program: torch.fx.GraphModule, cut: Sequence[int]) -> Plan:
    """The plan with this cut: each segment is kept together, and the budget is too small for two."""
    steps = [node.name for node in program.graph.nodes if node.op == "call_function"]
    layers = [tuple(steps[i : i + 2]) for i in range(0, len(steps), 2)]
    ends = itertools.accumulate(cut)
    together = [sum(layers[end - count : end], ()) for count, end in zip(cut, ends, strict=True)]
    plan = fx_partition.plan(program, 1, keep_together=together)
    assert plan.num_partitions == len(cut)
    return plan


def milliseconds(plan: Plan, program: torch.fx.GraphModule, constants: Constants) -> float:
    """Of an inference in a stream."""
    found = fx_partition.simulate(
        plan, constants.device, model=program, link=constants.link, overheads=constants.overheads
    )
    return 1e3 / found.throughput


def spills(row: Row) -> bool:
    """No network that is held takes a millisecond and a half."""
    return row.ms > 1.5


def kind(row: Row) -> str:
    return f"{row.tpus} {row.segmentation}, {'spills' if spills(row) else 'fits'}"


def errors(rows: Sequence[Row], predicted: Mapping[tuple[int, int, str], float]) -> list[float]:
    return [abs(predicted[row.name] / row.ms - 1) for row in rows]


def misranked(
    rows: Sequence[Row], predicted: Mapping[tuple[int, int, str], float], alike: Callable[[Row, Row], bool]
) -> tuple[list[tuple[Row, Row]], int]:
    """Pairs that differ by more than 20% and are predicted the other way round, or alike; and how many pairs differ."""
    pairs = [
        (a, b) if a.ms < b.ms else (b, a)
        for a, b in itertools.combinations(rows, 2)
        if alike(a, b) and max(a.ms, b.ms) > 1.2 * min(a.ms, b.ms)
    ]
    return [(a, b) for a, b in pairs if predicted[a.name] >= predicted[b.name]], len(pairs)


class Choice(NamedTuple):
    """Of one network: devices that measure best, that the planner takes, and that the simulator finds best."""

    hidden: int
    measured: int
    planned: int
    simulated: int
    spills: list[int]


def choices(rows: Sequence[Row], constants: Constants) -> list[Choice]:
    """What the planner does for each network; ``spills``: the numbers of devices for which it spills needlessly."""
    found = []
    usable = constants.device.usable_bytes
    for hidden, group in itertools.groupby(sorted(rows), key=lambda row: row.hidden):
        program, layers = exported(hidden), sizes(hidden)
        best = min(group, key=lambda row: row.ms).tpus
        plans = {tpus: fx_partition.plan(program, usable, devices=tpus) for tpus in range(1, 5)}
        wrong = [
            tpus for tpus, plan in plans.items()
            if plan.spill_bytes
            and any(not sum(fetched(layers, cut, usable / MIB)) for k in range(1, tpus + 1) for cut in cuts(k))
        ]  # fmt: skip
        every = [cut_plan(program, cut) for tpus in range(1, 5) for cut in cuts(tpus)]
        fastest = min(every, key=lambda plan: milliseconds(plan, program, constants))
        planned = fx_partition.plan(program, usable).num_partitions
        found.append(Choice(hidden, best, planned, fastest.num_partitions, wrong))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every row, not the kinds alone")
    arguments = parser.parse_args()
    rows = read(Path(__file__).parent / "data" / "edgetpu_fc.csv")
    constants = fit(rows)
    device, overheads = constants.device, constants.overheads
    print(
        f"Fitted on {len(FITTED)} rows: call {overheads.call * 1e3:.3f} ms, on chip "
        f"{device.onchip_bandwidth / 1e9:.1f} GB/s, off chip {device.memory_bandwidth / 1e9:.3f} GB/s, fetch "
        f"{overheads.fetch * 1e3:.3f} ms, hop {constants.link.latency * 1e3:.3f} ms\n"
    )
    predicted = predict(rows, constants)
    held_out = [row for row in rows if row.name not in FITTED]
    return _print(rows, held_out, predicted, choices(rows, constants), arguments.all)


def _print(
    rows: Sequence[Row],
    held_out: Sequence[Row],
    predicted: Mapping[tuple[int, int, str], float],
    chosen: Sequence[Choice],
    every: bool,
) -> int:
    if every:
        print(tabulate(
            [(*row[:3], "-".join(map(str, row.cut)), row.ms, f"{predicted[row.name]:.4f}",
              f"{predicted[row.name] / row.ms - 1:+.1%}", "fitted" if row.name in FITTED else "") for row in rows],
            headers=["N", "devices", "segmentation", "layers", "measured, ms", "predicted, ms", "error", ""],
        ), end="\n\n")  # fmt: skip
    groups: dict[str, list[Row]] = {"all": list(held_out), "all that spill": [r for r in held_out if spills(r)]}
    for row in held_out:
        groups.setdefault(kind(row), []).append(row)
    table = [(name, len(group), *_spread(errors(group, predicted))) for name, group in groups.items()]
    print(tabulate(table, headers=["held out", "rows", "median error", "90th percentile", "largest"]), end="\n\n")
    same, of_same = misranked(held_out, predicted, lambda a, b: a.hidden == b.hidden)
    any_pair, of_any = misranked(held_out, predicted, lambda a, b: True)
    noise = sum(kind(a) == kind(b) == "1 single, fits" for a, b in any_pair)
    print(f"Pairs that differ by more than 20%: of one network {of_same}, ranked wrongly {len(same)};")
    print(f"of any two networks {of_any}, ranked wrongly {len(any_pair)}, {noise} of them with one device that fits.\n")
    beyond = [c for c in chosen if any(spills(r) for r in rows if r.hidden == c.hidden and r.tpus == 1)]
    planned = [c.hidden for c in beyond if c.planned != c.measured]
    simulated = [c.hidden for c in beyond if c.simulated != c.measured]
    spilling = [(c.hidden, c.spills) for c in chosen if c.spills]
    print(f"{len(beyond)} networks that one device spills: the planner takes another number of devices than the "
          f"measured best in {len(planned)}, the fastest simulated cut in {len(simulated)}.")  # fmt: skip
    fits = [c for c in chosen if c not in beyond]
    print(f"{len(fits)} that it holds: another number in {sum(c.planned != c.measured for c in fits)} and "
          f"{sum(c.simulated != c.measured for c in fits)}.")  # fmt: skip
    print(f"Of {4 * len(chosen)} plans for one to four devices, {len(spilling)} spill where another cut would not.")
    medians = [statistics.median(errors(groups[name], predicted)) for name in ("all", "all that spill")]
    missed = [
        name
        for name, bad in {
            "median error <= 5%": medians[0] > 0.05, "median error <= 5% where it spills": medians[1] > 0.05,
            "pairs of one network": same, "number of devices": planned, "no needless spill": spilling,
        }.items()
        if bad
    ]  # fmt: skip
    print(f"\nMissed: {', '.join(missed)}." if missed else "\nAll targets are met.")
    return int(bool(missed))


def _spread(found: Sequence[float]) -> tuple[str, str, str]:
    return tuple(f"{number:.1%}" for number in (statistics.median(found), np.quantile(found, 0.9), max(found)))


if __name__ == "__main__":
    sys.exit(main())
