"""The event loop against what queueing theory says of simple pipelines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from fx_partition.cost.events import Span, Stage, play
from fx_partition.cost.price import Price


def taking(*seconds: float, offchip: Sequence[float] = ()) -> object:
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
    stages = [Stage((0,)), Stage((1,), 0.5, "a"), Stage((2,), 0.5, "b")]
    found = ends(play(stages, 20, 1, 8, taking(1.0, 3.0, 2.0)))
    assert found[0] == pytest.approx(1 + 0.5 + 3 + 0.5 + 2)
    assert [b - a for a, b in itertools.pairwise(found)] == pytest.approx([3.0] * 19)


def test_or_its_slowest_link() -> None:
    stages = [Stage((0,)), Stage((1,), 4.0, "a")]
    found = ends(play(stages, 20, 1, 8, taking(1.0, 3.0)))
    assert found[-1] - found[-2] == pytest.approx(4.0)


def test_on_a_bus_hops_and_fetches_add_up() -> None:
    stages = [Stage((0,), 0.25, "bus"), Stage((1,), 0.25, "bus"), Stage((2,), 0.25, "bus")]
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
    stages = [Stage((0,), 0.3, "bus"), Stage((1, 2), 0.3, "bus"), Stage((0,), 0.3, "bus")]
    spans = play(stages, 12, 2, inflight, taking(0.7, 1.1, 0.9, offchip=[0.2]), bus="bus")
    runs = [s for s in spans if s.what == "run"]
    assert no_overlap(spans) and len(runs) == 12 * 2 * 3
    starts = {step: min(s.start for s in spans if s.step == step) for step in range(12)}
    done = dict(enumerate(ends(spans)))
    assert all(starts[step] >= sorted(done.values())[step - inflight] for step in range(inflight, 12))
    assert spans == play(stages, 12, 2, inflight, taking(0.7, 1.1, 0.9, offchip=[0.2]), bus="bus")
