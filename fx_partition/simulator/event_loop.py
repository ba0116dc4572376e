"""A discrete event loop: runs of stages on devices and hops over links, one at a time on each, in a fixed order.

A step is some items (microbatches) that go through all stages. Whatever is free takes the waiting job of the oldest
step, of that the first stage, of that the first item: so a device that holds several stages runs one for all items of a
step before the next. A stage on several devices lets them take turns by item.

Jobs wait at the place that they need, the oldest first, and an event asks only those places that it changed.
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
    """Where a stage runs.

    Attributes:
        devices: their places; more than one take turns.
        hop: seconds that its inputs are on their way; None where they need not travel.
        links: names of those to each device, all of them the bus where there is one.
        back: seconds that its results for the caller are on their way over the same links, behind the run.
    """

    devices: tuple[int, ...]
    hop: float | None = None
    links: tuple[str, ...] = ()
    back: float = 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time.

    Attributes:
        what: "hop", "fetch" (off-chip memory over a shared bus), "run" or "back" (results for the caller over it).
        step, item, stage: whose.
        place: ``"device 0"``, or the name of a link.
        start, end: seconds from the beginning.
        price: of the run; None for all else.
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
    turn: int  # which of the stage's devices
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
    """All that happens until the last step is done, in the order in which it begins.

    Args:
        stages: in the order in which an item passes them.
        steps: how many there are.
        items: of a step.
        inflight: so many steps are on their way at most; the next enters when one is done.
        run: called as (stage, device) when a run begins: what it takes.
        bus: the link that fetches from off-chip memory take too; "" where devices fetch on their own.
    """
    return _Loop(stages, items, run, bus).play(steps, inflight)


class _Loop:
    def __init__(self, stages: Sequence[Stage], items: int, run: Callable[[int, int], Price], bus: str) -> None:
        self._stages, self._items, self._run, self._bus = stages, items, run, bus
        self._names = [[f"device {device}" for device in stage.devices] for stage in stages]
        self._busy: set[str] = set()
        self._waiting: defaultdict[str, list[tuple[Order, _Job]]] = defaultdict(list)  # a heap for each place
        self._changed: set[str] = set()  # places that were freed or waited for since they were last asked
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
        # A run that has fetched holds its device already: it waits for nothing but its turn in the order of jobs.
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
