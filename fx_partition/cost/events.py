"""A discrete event loop: runs of stages on devices and hops over links, one at a time on each, in a fixed order.

A step is some items (microbatches) that go through all stages. Whatever is free takes the waiting job of the oldest
step, of that the first stage, of that the first item: so a device that holds several stages runs one for all items of a
step before the next. A stage on several devices lets them take turns by item.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .price import Price


@dataclass(frozen=True)
class Stage:
    """Where a stage runs.

    Attributes:
        devices: their places; more than one take turns.
        hop: seconds that its inputs are on their way, 0.0 where there is no hop.
        link: name of the link that they take, "" where there is no hop.
    """

    devices: tuple[int, ...]
    hop: float = 0.0
    link: str = ""


@dataclass(frozen=True)
class Span:
    """Something that took time.

    Attributes:
        what: "hop", "fetch" (off-chip memory over a shared bus) or "run".
        step, item, stage: whose.
        place: ``"device 0"``, or the name of a link.
        start, end: seconds from the beginning.
        price: of the run; None for a hop and a fetch.
    """

    what: str
    step: int
    item: int
    stage: int
    place: str
    start: float
    end: float
    price: Price | None = None


@dataclass
class _Job:
    step: int
    stage: int
    item: int
    phase: str  # hop, start, fetch, run
    price: Price | None = None
    fetch: float = 0.0

    @property
    def order(self) -> tuple[int, int, int]:
        return self.step, self.stage, self.item


def play(
    stages: Sequence[Stage],
    steps: int,
    items: int,
    inflight: int,
    run: Callable[[int, int], Price],
    bus: str = "",
) -> list[Span]:
    """All that happens until the last step is done, by its end.

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
        self._busy: set[str] = set()
        self._ready: list[tuple[tuple[int, int, int], _Job]] = []
        self._ends: list[tuple[float, tuple[int, int, int], str, _Job]] = []
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
            self._next(job, left)

    def _enter(self, step: int, stage: int, item: int) -> None:
        job = _Job(step, stage, item, "hop" if self._stages[stage].link else "start")
        heapq.heappush(self._ready, (job.order, job))

    def _start_all(self) -> None:
        waiting = []
        while self._ready:
            order, job = heapq.heappop(self._ready)
            if not self._start(job):
                waiting.append((order, job))
        self._ready = waiting  # sorted, and so a heap

    def _start(self, job: _Job) -> bool:
        stage = self._stages[job.stage]
        device = stage.devices[(job.step * self._items + job.item) % len(stage.devices)]
        own = f"device {device}"
        if job.phase == "hop":
            return self._take(job, stage.link, stage.hop)
        if job.phase == "start":
            if own in self._busy:
                return False
            self._busy.add(own)
            job.price = self._run(job.stage, device)
            job.fetch = job.price.offchip if self._bus else 0.0
            job.phase = "fetch" if job.fetch else "run"
        if job.phase == "fetch":
            return self._take(job, self._bus, job.fetch)
        assert job.price is not None
        self._end(job, own, job.price.seconds - job.fetch)
        return True

    def _take(self, job: _Job, place: str, seconds: float) -> bool:
        if place in self._busy:
            return False
        self._busy.add(place)
        self._end(job, place, seconds)
        return True

    def _end(self, job: _Job, place: str, seconds: float) -> None:
        heapq.heappush(self._ends, (self._now + seconds, job.order, place, job))
        price = job.price if job.phase == "run" else None
        self._spans.append(
            Span(job.phase, job.step, job.item, job.stage, place, self._now, self._now + seconds, price)
        )

    def _next(self, job: _Job, left: Counter[int]) -> None:
        if job.phase != "run":
            job.phase = "start" if job.phase == "hop" else "run"
            heapq.heappush(self._ready, (job.order, job))
        elif job.stage + 1 < len(self._stages):
            self._enter(job.step, job.stage + 1, job.item)
        else:
            left[job.step] -= 1
            if not left[job.step]:
                del left[job.step]
