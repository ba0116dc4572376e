"""Simulate runs of stages on devices and hops over links as discrete events, one at a time on each of them.

A step is some items (microbatches) that go through all stages. A free device or link takes the waiting job of the
oldest step; within a step that of the first stage, and within a stage that of the first item. So a device with several
stages runs one stage for all items of a step before the next. If a stage is on several devices, they take turns by
item.

Jobs wait at the place (device or link) that they need, the oldest first, and an event looks only at the places that it
changed.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .run_time import Price


@dataclass(frozen=True)
class Stage:
    """The devices and links of a stage.

    Attributes:
        devices: the numbers of the devices; several take turns.
        hop: seconds that the transfer of its inputs takes; None if they are on the device already.
        links: the name of the link to each device; all are the bus if there is one.
        back: seconds that the transfer of its results to the caller takes over the same links, after the run.
    """

    devices: tuple[int, ...]
    hop: float | None = None
    links: tuple[str, ...] = ()
    back: float = 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """An event that took time.

    Attributes:
        what: "hop", "fetch" (from off-chip memory over a shared bus), "run" or "back" (results over the bus).
        step, item, stage: the job.
        place: ``"device 0"``, or the name of a link.
        start, end: seconds since the start of the simulation.
        price: the price of a run; None for other events.
    """

    what: str
    step: int
    item: int
    stage: int
    place: str
    start: float
    end: float
    price: Price | None = None


Order: TypeAlias = tuple[int, int, int]


@dataclass(slots=True)
class _Job:
    step: int
    stage: int
    item: int
    turn: int  # the position among the stage's devices
    phase: str  # hop, start, fetch, run, back
    price: Price | None = None
    fetch: float = 0.0

    @property
    def order(self) -> Order:
        return self.step, self.stage, self.item


def play(
    stages: Sequence[Stage],
    steps: int,
    items: int,
    inflight: int,
    run: Callable[[int, int], Price],
    bus: str = "",
) -> list[Span]:
    """Return all events until the last step is done, in the order in which they begin.

    Args:
        stages: the stages, in the order in which an item passes them.
        steps: the number of steps.
        items: the number of items of a step.
        inflight: the most steps in flight; the next one enters when one is done.
        run: is called with (stage, device) when a run begins, and returns its price.
        bus: the link that fetches from off-chip memory also use; "" if devices have their own memory buses.
    """
    return _Loop(stages, items, run, bus).play(steps, inflight)


class _Loop:
    def __init__(self, stages: Sequence[Stage], items: int, run: Callable[[int, int], Price], bus: str) -> None:
        self._stages, self._items, self._run, self._bus = stages, items, run, bus
        self._names = [[f"device {device}" for device in stage.devices] for stage in stages]
        self._busy: set[str] = set()
        self._waiting: defaultdict[str, list[tuple[Order, _Job]]] = defaultdict(list)  # a heap for each place
        self._changed: set[str] = set()  # places that were freed, or got a new job, since they were last looked at
        self._ends: list[tuple[float, Order, str, _Job]] = []
        self._spans: list[Span] = []
        self._now = 0.0

    def play(self, steps: int, inflight: int) -> list[Span]:
        left = Counter[int]()
        entered = 0
        while True:
            while entered < steps and len(left) < inflight:
                left[entered] = self._items
                for item in range(self._items):
                    self._enter(entered, 0, item)
                entered += 1
            self._start_all()
            if not self._ends:
                return self._spans
            self._now, _, place, job = heapq.heappop(self._ends)
            self._busy.discard(place)
            self._changed.add(place)
            self._next(job, left)

    def _enter(self, step: int, stage: int, item: int) -> None:
        about = self._stages[stage]
        turn = (step * self._items + item) % len(about.devices)
        self._wait(_Job(step, stage, item, turn, "start" if about.hop is None else "hop"))

    def _wait(self, job: _Job) -> None:
        # A run that has fetched holds its device already: it waits only for its turn in the order of jobs.
        place = "" if job.phase == "run" else self._place(job)
        heapq.heappush(self._waiting[place], (job.order, job))
        self._changed.add(place)

    def _place(self, job: _Job) -> str:
        match job.phase:
            case "hop" | "back":
                return self._stages[job.stage].links[job.turn]
            case "fetch":
                return self._bus
        return self._names[job.stage][job.turn]

    def _start_all(self) -> None:
        free = [place for place in self._changed if place not in self._busy and self._waiting[place]]
        self._changed.clear()
        oldest = [(self._waiting[place][0][0], place) for place in free]
        heapq.heapify(oldest)
        while oldest:
            _, place = heapq.heappop(oldest)
            if place not in self._busy:  # else an older job has just begun to fetch
                self._start(heapq.heappop(self._waiting[place])[1])

    def _start(self, job: _Job) -> None:
        if job.phase == "start":
            self._busy.add(self._place(job))
            job.price = self._run(job.stage, self._stages[job.stage].devices[job.turn])
            job.fetch = job.price.offchip if self._bus else 0.0
            job.phase = "fetch" if job.fetch else "run"
            if job.fetch and self._bus in self._busy:
                self._wait(job)
                return
        place = self._place(job)
        self._busy.add(place)
        end = self._now + self._seconds(job)
        heapq.heappush(self._ends, (end, job.order, place, job))
        price = job.price if job.phase == "run" else None
        self._spans.append(Span(job.phase, job.step, job.item, job.stage, place, self._now, end, price))

    def _seconds(self, job: _Job) -> float:
        match job.phase:
            case "hop":
                return self._stages[job.stage].hop or 0.0
            case "back":
                return self._stages[job.stage].back
            case "fetch":
                return job.fetch
        assert job.price is not None
        return job.price.seconds - job.fetch

    def _next(self, job: _Job, left: Counter[int]) -> None:
        match job.phase:
            case "hop":
                job.phase = "start"
            case "fetch":
                job.phase = "run"
            case "run" if self._stages[job.stage].back:
                job.phase = "back"
            case _:
                self._leave(job, left)
                return
        self._wait(job)

    def _leave(self, job: _Job, left: Counter[int]) -> None:
        if job.stage + 1 < len(self._stages):
            self._enter(job.step, job.stage + 1, job.item)
        else:
            left[job.step] -= 1
            if not left[job.step]:
                del left[job.step]
