"""Predict the measured networks: fit constants, simulate times, plan numbers of devices."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

import fx_partition
from fx_partition import Device, Link, Overheads, Plan

from .rows import MIB, Row, cuts, fetched, network, sizes

#: The rows that constants are fitted on: (N, devices, segmentation). Two of each kind that constants tell apart, in the
#: lower and in the upper half of their range where there are two.
FITTED = (
    (620, 1, "single"), (1220, 1, "single"),          # a call, and bytes on chip
    (1820, 1, "single"), (2420, 1, "single"),         # one device that spills
    (1220, 2, "balanced"), (1220, 3, "equal_layers"),  # hops
    (2300, 2, "balanced"), (2300, 3, "equal_layers"),  # several devices, one of which spills
)  # fmt: skip


@dataclass(frozen=True)
class Constants:
    """The fitted constants: the device with its bandwidths, its overheads, the link to the host."""

    device: Device
    overheads: Overheads
    link: Link

    def __str__(self) -> str:
        return (
            f"call {self.overheads.call * 1e3:.3f} ms, on chip {self.device.onchip_bandwidth / 1e9:.1f} GB/s, off chip "
            f"{self.device.memory_bandwidth / 1e9:.3f} GB/s, fetch {self.overheads.fetch * 1e3:.3f} ms, hop "
            f"{self.link.latency * 1e3:.3f} ms"
        )


def fit(rows: Sequence[Row], names: Collection[tuple[int, int, str]] = FITTED) -> Constants:
    """Least squares of relative errors over the rows of these names.

    One device: call + bytes on chip / bandwidth + (fetch + bytes off chip / bandwidth). Several: a hop for each, and
    what is fetched. That is what the simulator comes to for these rows, written as a linear system.
    """
    device = fx_partition.device("EdgeTPU")
    chosen = [row for row in rows if row.name in names]
    assert len(chosen) == len(names)
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


class Choice(NamedTuple):
    """Of one network: devices that measure best, that the planner takes, and that the simulator finds best."""

    hidden: int
    measured: int
    planned: int
    simulated: int
    spills: list[int]  # the numbers of devices for which the plan spills and another cut would not


class Network:
    """One network as a graph; each of its cuts is simulated once."""

    def __init__(self, hidden: int, constants: Constants) -> None:
        program = torch.export.export(network(hidden), (torch.zeros(1, 64, dtype=torch.int8),))
        graph = program.module(check_guards=False)
        assert isinstance(graph, torch.fx.GraphModule)
        self.graph, self.hidden, self.constants = graph, hidden, constants
        self._known: dict[tuple[int, ...], float] = {}

    def milliseconds(self, cut: tuple[int, ...]) -> float:
        """Return the milliseconds of an inference in a stream."""
        if cut not in self._known:
            constants = self.constants
            device, link, overheads = constants.device, constants.link, constants.overheads
            found = fx_partition.simulate(
                self.graph, plan=self._plan(cut), device=device, link=link, overheads=overheads
            )
            self._known[cut] = 1e3 / found.throughput
        return self._known[cut]

    def _plan(self, cut: Sequence[int]) -> Plan:
        """Return the plan with this cut: each segment is kept together, and the budget is too small for two."""
        steps = [node.name for node in self.graph.graph.nodes if node.op == "call_function"]
        layers = [tuple(steps[i : i + 2]) for i in range(0, len(steps), 2)]
        ends = itertools.accumulate(cut)
        together = [sum(layers[end - count : end], ()) for count, end in zip(cut, ends, strict=True)]
        plan = fx_partition.plan(self.graph, cache_bytes=1, keep_together=together)
        assert plan.num_partitions == len(cut)
        return plan

    def choice(self, rows: Sequence[Row]) -> Choice:
        """Return the choices of the planner and of the simulator, where these rows were measured."""
        usable, layers = self.constants.device.usable_bytes, sizes(self.hidden)
        best = min(rows, key=lambda row: row.ms).tpus
        plans = {tpus: fx_partition.plan(self.graph, cache_bytes=usable, devices=tpus) for tpus in range(1, 5)}
        wrong = [
            tpus for tpus, plan in plans.items()
            if plan.spill_bytes
            and any(not sum(fetched(layers, cut, usable / MIB)) for k in range(1, tpus + 1) for cut in cuts(k))
        ]  # fmt: skip
        fastest = min((cut for tpus in range(1, 5) for cut in cuts(tpus)), key=self.milliseconds)
        planned = fx_partition.plan(self.graph, cache_bytes=usable).num_partitions
        return Choice(self.hidden, best, planned, len(fastest), wrong)


def look(rows: Sequence[Row], constants: Constants) -> tuple[dict[tuple[int, int, str], float], list[Choice]]:
    """Return the milliseconds of each row by the simulator, and the choice for each network."""
    predicted, chosen = {}, []
    for hidden, group in itertools.groupby(sorted(rows), key=lambda row: row.hidden):
        one, same = Network(hidden, constants), list(group)
        predicted |= {row.name: one.milliseconds(row.cut) for row in same}
        chosen.append(one.choice(same))
    return predicted, chosen
