"""The event loop against what queueing theory says of simple pipelines."""

from __future__ import annotations

import heapq
import itertools
import random
import sys
from collections.abc import Callable, Sequence

import pytest

from fx_partition.simulator.event_loop import Span, Stage, play
from fx_partition.simulator.run_time import Price


def taking(*seconds: float, offchip: Sequence[float] = ()) -> Callable[[int, int], Price]:
    fetched = [*offchip, *[0.0] * len(seconds)]

    def run(stage: int, device: int) -> Price:
        return Price(0.0, 0.0, fetched[stage], seconds[stage] - fetched[stage], fetched[stage])

    return run


def ends(spans: Sequence[Span]) -> list[float]:
    last = {}
    for span in spans:
        last[span.step] = max(span.end, last.get(span.step, 0.0))
    return [last[step] for step in sorted(last)]


def no_overlap(spans: Sequence[Span]) -> bool:
    by_place: dict[str, list[Span]] = {}
    for span in spans:
        by_place.setdefault(span.place, []).append(span)
    return all(
        a.end <= b.start + 1e-12
        for own in by_place.values()
        for a, b in itertools.pairwise(sorted(own, key=lambda s: s.start))
    )


def test_a_pipeline_is_as_fast_as_its_slowest_stage() -> None:
    stages = [Stage((0,)), Stage((1,), 0.5, ("a",)), Stage((2,), 0.5, ("b",))]
    found = ends(play(stages, 20, 1, 8, taking(1.0, 3.0, 2.0)))
    assert found[0] == pytest.approx(1 + 0.5 + 3 + 0.5 + 2)
    assert [b - a for a, b in itertools.pairwise(found)] == pytest.approx([3.0] * 19)


def test_or_its_slowest_link() -> None:
    stages = [Stage((0,)), Stage((1,), 4.0, ("a",))]
    found = ends(play(stages, 20, 1, 8, taking(1.0, 3.0)))
    assert found[-1] - found[-2] == pytest.approx(4.0)


def test_on_a_bus_hops_and_fetches_add_up() -> None:
    stages = [Stage((0,), 0.25, ("bus",)), Stage((1,), 0.25, ("bus",)), Stage((2,), 0.25, ("bus",))]
    spans = play(stages, 40, 1, 8, taking(0.1, 2.0, 0.1, offchip=[0.0, 1.9, 0.0]), bus="bus")
    found = ends(spans)
    assert (found[30] - found[10]) / 20 == pytest.approx(3 * 0.25 + 1.9)
    assert no_overlap([s for s in spans if s.place == "bus"])


def test_copies_take_turns() -> None:
    stages = [Stage((0,)), Stage((1, 2, 3))]
    spans = play(stages, 30, 1, 8, taking(1.0, 3.0))
    assert ends(spans)[-1] - ends(spans)[-4] == pytest.approx(3.0)
    assert [s.place for s in spans if s.stage == 1][:4] == ["device 1", "device 2", "device 3", "device 1"]


def test_a_device_with_two_stages_runs_all_items_of_a_step_in_one_before_the_other() -> None:
    stages = [Stage((0,)), Stage((0,))]
    spans = play(stages, 2, 3, 1, taking(1.0, 2.0))
    assert [(s.step, s.stage, s.item) for s in spans] == [
        (step, stage, item) for step in range(2) for stage in range(2) for item in range(3)
    ]
    assert ends(spans) == [9.0, 18.0]


@pytest.mark.parametrize("inflight", [1, 3])
def test_nothing_overlaps_and_no_more_is_on_its_way_than_allowed(inflight: int) -> None:
    stages = [Stage((0,), 0.3, ("bus",)), Stage((1, 2), 0.3, ("bus",) * 2), Stage((0,), 0.3, ("bus",))]
    spans = play(stages, 12, 2, inflight, taking(0.7, 1.1, 0.9, offchip=[0.2]), bus="bus")
    runs = [s for s in spans if s.what == "run"]
    assert no_overlap(spans) and len(runs) == 12 * 2 * 3
    starts = {step: min(s.start for s in spans if s.step == step) for step in range(12)}
    done = dict(enumerate(ends(spans)))
    assert all(starts[step] >= sorted(done.values())[step - inflight] for step in range(inflight, 12))
    assert spans == play(stages, 12, 2, inflight, taking(0.7, 1.1, 0.9, offchip=[0.2]), bus="bus")


def reference(
    stages: Sequence[Stage], steps: int, items: int, inflight: int, run: Callable[[int, int], Price], bus: str
) -> list[Span]:
    """The same by its definition: at each event all jobs try to start, from the oldest on."""
    jobs: list[tuple[int, int, int, int]] = []  # step, stage, item, phase
    ends: list[tuple[float, int, int, int, int, str]] = []
    busy, prices, spans = set(), {}, []
    left: dict[int, int] = {}
    entered, now = 0, 0.0
    names = ("hop", "start", "fetch", "run", "back")

    def take(step: int, stage: int, item: int, phase: int) -> int | None:
        """Start it; the phase in which it waits if it cannot."""
        about, key = stages[stage], (step, stage, item)
        turn = (step * items + item) % len(about.devices)
        own = f"device {about.devices[turn]}"
        if phase == 1:
            if own in busy:
                return phase
            busy.add(own)
            prices[key] = run(stage, about.devices[turn])
            phase = 2 if bus and prices[key].offchip else 3
        place = {2: bus, 3: own}.get(phase) or about.links[turn]
        if phase != 3 and place in busy:
            return phase
        busy.add(place)
        fetch = prices[key].offchip if key in prices and bus else 0.0
        seconds = (about.hop or 0.0, 0.0, fetch, prices[key].seconds - fetch if phase == 3 else 0.0, about.back)[phase]
        heapq.heappush(ends, (now + seconds, *key, phase, place))
        spans.append(Span(
            names[phase], step, item, stage, place, now, now + seconds, prices[key] if phase == 3 else None
        ))  # fmt: skip
        return None

    while True:
        while entered < steps and len(left) < inflight:
            left[entered] = items
            jobs += [(entered, 0, item, 1 if stages[0].hop is None else 0) for item in range(items)]
            entered += 1
        waits = [(job, take(*job)) for job in sorted(jobs)]
        jobs = [(*job[:3], phase) for job, phase in waits if phase is not None]
        if not ends:
            return spans
        now, step, stage, item, phase, place = heapq.heappop(ends)
        busy.discard(place)
        if phase in (0, 2):
            jobs.append((step, stage, item, phase + 1))
        elif phase == 3 and stages[stage].back:
            jobs.append((step, stage, item, 4))
        elif stage + 1 < len(stages):
            jobs.append((step, stage + 1, item, 1 if stages[stage + 1].hop is None else 0))
        else:
            left[step] -= 1
            if not left[step]:
                del left[step]


@pytest.mark.parametrize("seed", range(40))
def test_spans_are_those_of_the_definition_in_the_same_order(seed: int) -> None:
    pick = random.Random(seed)
    bus = pick.choice(["", "bus"])
    times = [0.0, 0.25, 0.5, 1.0, 1.5]  # sums are exact, and many things end at once
    stages = []
    for _ in range(pick.randint(1, 4)):
        devices = tuple(pick.sample(range(4), pick.randint(1, 3)))
        links = tuple(bus or f"link to {device}" for device in devices)
        stages.append(Stage(devices, pick.choice([None, *times]), links, pick.choice(times)))
    seconds = [pick.choice(times[1:]) for _ in stages]
    offchip = [pick.choice([0.0, each]) for each in seconds]
    run = taking(*seconds, offchip=offchip)
    rest = (pick.randint(1, 9), pick.randint(1, 4), pick.randint(1, 5), run, bus)
    assert play(stages, *rest) == reference(stages, *rest)


def test_the_work_of_an_event_does_not_grow_with_the_jobs_that_wait() -> None:
    stages = [Stage((0,)), Stage((1,), 0.5, ("bus",)), Stage((2,), 0.5, ("bus",), 0.25)]

    def calls_a_span(items: int) -> float:
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            spans = play(stages, 2, items, 2, taking(1.0, 3.0, 2.0, offchip=[0.0, 1.0, 0.0]), "bus")
        finally:
            sys.setprofile(before)
        return calls / len(spans)

    assert calls_a_span(400) == pytest.approx(calls_a_span(40), rel=0.05)


def test_results_for_the_caller_go_back_over_the_bus() -> None:
    stages = [Stage((0,), 0.5, ("bus",)), Stage((1,), 0.25, ("bus",), 2.0)]
    spans = play(stages, 40, 1, 8, taking(1.0, 1.0), bus="bus")
    assert [s.what for s in spans if s.step == 0] == ["hop", "run", "hop", "run", "back"]
    found = ends(spans)
    assert found[0] == pytest.approx(0.5 + 1 + 0.25 + 1 + 2)
    assert (found[30] - found[10]) / 20 == pytest.approx(0.5 + 0.25 + 2) and no_overlap(spans)
