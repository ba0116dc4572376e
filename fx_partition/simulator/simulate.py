"""Simulate a plan on devices from their records, without the devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeAlias

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import shown
from fx_partition.hardware.device_names import find_device
from fx_partition.hardware.overheads import OVERHEADS, Link, Overheads
from fx_partition.hardware.records import Device
from fx_partition.passes.capture.capture_model import ExampleInputs, Model, capture
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import CacheBytes, request_unless_planned
from fx_partition.passes.timing.partition_work import PartitionWork

from .cache_model import Moved, residency
from .event_loop import Span, Stage, play
from .plan_work import work_of
from .result import Simulation, StageUse
from .run_time import Price, largest, price
from .steady_state import Recurrent

#: The most runs of stages of one simulation; they take about a minute.
MOST_RUNS = 1_000_000

Devices: TypeAlias = "str | Device | Sequence[str | Device]"


def simulate(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    *,
    cache_bytes: CacheBytes | None = None,
    plan: Plan | None = None,
    device: Devices | None = None,
    dynamic_shapes: Any = None,
    bind: Mapping[str, int] | None = None,
    link: Link | None = None,
    overheads: Overheads | None = None,
    microbatches: int = 1,
    steps: int = 8,
    **options: Any,
) -> Simulation:
    """Predict the throughput and the latency of a plan on devices, from their records.

    Requests arrive without a pause, so the throughput is that of the slowest stage or link. The latency is that of a
    lone request, the sum of all stages and hops. Partition i runs on the device of its slot; stages on one device take
    turns, and copies share the requests, as in the plan. What stays on chip is followed run by run (see `cache_model`),
    and the figures are those of requests after the first ones, which fill the memory.

    Args:
        model, example_inputs, cache_bytes, dynamic_shapes, options: as for `fx_partition.plan`.
        plan: a plan made before for this model, instead of ``cache_bytes`` and options.
        device: a name ("H100-SXM"; `fx-partition devices` lists them; "auto" is this machine's first) or a record; or a
            sequence with one of these for each device, in order. Default: the device that ``cache_bytes`` names.
        bind: numbers for symbols; the others have those of the plan.
        link: the link between devices. Default: that of the first device's record. A shared link also carries the
            caller's inputs and results.
        overheads: the overheads of a run. Default: those of the device's kind.
        microbatches: the number of runs of the graph in a request, each with the given sizes. A device with several
            partitions runs all microbatches in one before the next.
        steps: the number of requests to measure.

    Raises:
        PlanMismatchError: the plan was made for another graph, or cannot run this one.
        PartitionError: a number is out of bounds, or too many runs would be simulated; the sequence of devices is not
            as long as the plan's, or a device without off-chip memory cannot hold its part.
        ValueError: no device has this name, or ``bind`` names no symbol of the graph.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(40)))
        >>> x = torch.randn(1, 1024)
        >>> found = fx_partition.simulate(model, x, cache_bytes="36MiB", device="H100-SXM")
        >>> alone = fx_partition.simulate(model, x, cache_bytes="1TiB", device="H100-SXM")
        >>> len(found.stages), found.throughput > 5 * alone.throughput
        (5, True)
    """
    for name, number in (("microbatches", microbatches), ("steps", steps)):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_RUNS:
            raise PartitionError(f"{name}={shown(number)} must be a whole number from 1 to {MOST_RUNS}")
    if plan is None:
        options["bind"] = bind
    request = request_unless_planned("simulate", plan, cache_bytes, options)
    if device is None and not isinstance(cache_bytes, str):
        raise PartitionError('simulate needs device=, the name of a device such as "H100-SXM", or its record')
    captured = None
    if plan is None:
        assert request is not None
        captured = capture(model, example_inputs, dynamic_shapes)
        plan = make_plan(captured, analyze_memory(captured), request)
    records = _records(plan, device or str(cache_bytes))
    works = work_of(captured or capture(model, example_inputs, dynamic_shapes), plan, bind)
    link = link or Link.of(records[0])
    numbers = plan.numbers(bind)
    activations = [partition.peak(numbers) for partition in plan.partitions]
    return _Simulator(plan, records, works, activations, link, overheads, microbatches).run(steps)


def _records(plan: Plan, device: Devices) -> list[Device]:
    """Return the record of each device of the plan."""
    count = plan.num_devices or plan.num_partitions or 1
    if isinstance(device, str | Device):
        return [find_device(device) if isinstance(device, str) else device] * count
    found = [find_device(one) if isinstance(one, str) else one for one in device]
    if len(found) != count:
        raise PartitionError(f"the plan has {count} devices, not {len(found)}; name one for each, or one for all")
    return found


class _Simulator:
    def __init__(
        self,
        plan: Plan,
        records: Sequence[Device],
        works: Sequence[PartitionWork],
        activations: Sequence[int],
        link: Link,
        overheads: Overheads | None,
        microbatches: int,
    ) -> None:
        self._records, self._works, self._activations, self._link = records, works, activations, link
        self._overheads, self._microbatches = overheads, microbatches
        self._bus = "bus" if link.shared else ""
        self._places = [(p.slot % len(records), *p.replicas) for p in plan.partitions]
        used = {place for places in self._places for place in places}
        self._used = len(used)
        self._hops = [
            i > 0 and (len(places) > 1 or places != self._places[i - 1]) for i, places in enumerate(self._places)
        ]
        self._stages = [self._stage(i) for i in range(plan.num_partitions)]

    def _stage(self, index: int) -> Stage:
        places, work, hops = self._places[index], self._works[index], self._hops[index]
        links = tuple(self._bus or f"link to {place}" for place in places)
        received = work.received_bytes if hops else 0
        if not self._bus:
            return Stage(places, self._link.seconds(received), links) if hops else Stage(places)
        # One latency for the call of a device, its results included; the overheads of a lone device contain it.
        called = hops or (index == 0 and self._used > 1)
        transfer = replace(self._link, latency=0.0).seconds
        hop = (self._link.latency if called else 0.0) + transfer(received + work.arriving_bytes)
        return Stage(places, hop if called or hop else None, links, transfer(work.leaving_bytes))

    def run(self, steps: int) -> Simulation:
        names = tuple(record.name for record in self._records)
        if not self._stages:
            return Simulation(names, self._microbatches, steps, math.inf, 0.0, 0.0, 0.0, (), ())
        rounds = math.lcm(*(len(places) for places in self._places))
        steps = rounds * -(-steps // rounds)
        # Enough requests before and after to fill and empty the pipeline, so that the measured ones see it full.
        inflight = 2 * self._used
        warm = rounds * -(-inflight // rounds)
        self._refuse_long(warm + steps + inflight + rounds + 1)
        memories = self._memories()
        alone = self._play(rounds + 1, 1, memories)  # each copy once, which fills all memories, and one more
        spans = self._play(warm + steps + inflight, inflight, memories)
        ends = self._ends(spans)
        seconds = ends[warm + steps - 1] - ends[warm - 1]
        window = range(warm, warm + steps)
        return Simulation(
            devices=names,
            microbatches=self._microbatches,
            steps=steps,
            throughput=steps * self._microbatches / seconds if seconds else math.inf,
            latency=max(s.end for s in alone) - min(s.start for s in alone if s.step == rounds),
            offchip_bytes=_moved(spans, window) / steps,
            first_offchip_bytes=_moved(alone, range(1)),
            stages=self._uses(spans, window, seconds / steps),
            spans=tuple(spans),
        )

    def _refuse_long(self, steps: int) -> None:
        """Refuse a simulation of too many runs, each of which is an event in memory."""
        runs = steps * self._microbatches * len(self._stages)
        if runs > MOST_RUNS:
            raise PartitionError(
                f"{steps} requests (with those that fill the pipeline) of {self._microbatches} microbatches through "
                f"{len(self._stages)} stages are {runs} runs, and at most {MOST_RUNS} are simulated: ask for fewer "
                "steps= or microbatches="
            )

    def _play(self, steps: int, inflight: int, memories: Mapping[int, Recurrent]) -> list[Span]:
        @cache  # most runs of a long simulation are equal
        def priced(stage: int, device: int, moved: Moved) -> Price:
            record, work = self._records[device], self._works[stage]
            overheads = self._overheads or OVERHEADS[record.kind]
            return price(record, work, moved.bytes, overheads, moved.written_back)

        def run(stage: int, device: int) -> Price:
            return priced(stage, device, memories[device].run(stage))

        return play(self._stages, steps, self._microbatches, inflight, run, self._bus)

    def _memories(self) -> dict[int, Recurrent]:
        hopped = [work.received if hops else frozenset() for work, hops in zip(self._works, self._hops, strict=True)]
        found = {}
        for place in sorted({place for places in self._places for place in places}):
            record = self._records[place]
            here = [i for i, places in enumerate(self._places) if place in places]
            activations = max((self._activations[i] for i in here), default=0)
            memory = residency(record, [self._works[i] for i in here], activations, self._link.shared)
            found[place] = Recurrent(memory, self._works, hopped)
        return found

    def _ends(self, spans: Sequence[Span]) -> list[float]:
        """Return the time at which each step was done; ascending, because copies may finish out of order."""
        ends: dict[int, float] = {}
        for span in spans:
            ends[span.step] = max(span.end, ends.get(span.step, 0.0))
        return sorted(ends.values())

    def _uses(self, spans: Sequence[Span], window: range, interval: float) -> tuple[StageUse, ...]:
        prices: list[list[Price]] = [[] for _ in self._stages]
        for span in spans:
            if span.price is not None and span.step in window:
                prices[span.stage].append(span.price)
        return tuple(self._use(stage, own, interval) for stage, own in zip(self._stages, prices, strict=True))

    def _use(self, stage: Stage, prices: Sequence[Price], interval: float) -> StageUse:
        seconds = sum(p.seconds for p in prices) / len(prices)
        return StageUse(
            places=stage.devices,
            seconds=seconds,
            hop=(stage.hop or 0.0) + stage.back,
            utilisation=seconds * self._microbatches / interval / len(stage.devices) if interval else 0.0,
            offchip_bytes=sum(p.moved for p in prices) * self._microbatches / len(prices),
            bound=_bound(prices),
        )


def _bound(prices: Sequence[Price]) -> str:
    """Return the cause that takes most of all these runs, from the causes of each that no other hides."""
    taken: dict[str, float] = {}
    for found in prices:
        for cause, seconds in found.causes.items():
            taken[cause] = taken.get(cause, 0.0) + seconds
    return largest(taken)


def _moved(spans: Sequence[Span], window: range) -> float:
    """Return the bytes that the steps of a window move off chip."""
    return sum(s.price.moved for s in spans if s.price is not None and s.step in window)
