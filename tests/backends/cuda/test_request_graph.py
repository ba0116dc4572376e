"""A whole request is one graph: the same few calls for any number of stages, ordered right, and no more than asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cuda_fakes import HOST, FakeCalls, FakeDriver
from torch import Tensor

from fx_partition.backends.cuda import stream_pipeline
from fx_partition.backends.cuda.stage_step import CudaStep
from fx_partition.backends.cuda.stream_pipeline import CudaPipeline
from fx_partition.common.errors import PartitionWarning

FIRST, SECOND = torch.device("cpu:0"), torch.device("cpu:1")


def build(
    driver: FakeDriver,
    places: Sequence[int],
    home: torch.device,
    *,
    inflight: int = 8,
    weights: Sequence[Tensor] = (),
    sizes: Sequence[int] = (2,),
    **options: Any,
) -> CudaPipeline:
    """Each stage multiplies by its weight; value i + 1 is what stage i makes."""
    weights = weights or [torch.full((1,), 2.0) for _ in places]
    steps = [
        CudaStep(
            torch.device(f"cpu:{place}"), driver.kernel("", lambda x, w: [x * w]), (i, weights[i]), (i + 1,), (i,), True
        )
        for i, place in enumerate(places)
    ]
    examples = [[(0, given(driver, home, size))] for size in sizes]
    return CudaPipeline(
        steps, len(places) + 1, (len(places),), inflight, graphs=True, persist=False, examples=examples, driver=driver,
        **options,
    )


def given(driver: FakeDriver, home: torch.device, size: int = 2) -> Tensor:
    x = torch.ones(size)
    return x if home == HOST else driver.put(x, home)


def calls(driver: FakeDriver) -> dict[str, int]:
    return {"launches": driver.replays, "events": driver.events, "waits": driver.waits, "copies": driver.copies}


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        # The caller's event, for which the launch stream waits, and the event of the end; an input and a result.
        (FIRST, {"launches": 1, "events": 2, "waits": 1, "copies": 2}),
        # The result is copied on the last device: after the graph, and before the next request of the slot.
        (HOST, {"launches": 1, "events": 2, "waits": 2, "copies": 2}),
    ],
    ids=["gpu", "host"],
)
@pytest.mark.parametrize("places", [(0, 1), (0, 1, 0, 1), (0, 1) * 8], ids=len)
def test_the_calls_of_a_request_do_not_depend_on_the_number_of_stages(
    places: Sequence[int], home: torch.device, expected: dict[str, int]
) -> None:
    driver = FakeDriver()
    pipeline = build(driver, places, home)
    requests = [given(driver, home) for _ in range(3)]
    for x in requests:
        before = calls(driver)
        request = pipeline.submit([(0, x)])
        assert {name: count - before[name] for name, count in calls(driver).items()} == expected
        (result,) = request.take()
        driver.read_by_caller(result)
        assert result.tolist() == [2.0 ** len(places)] * 2 and driver.device_of(result) == home
    pipeline.close()
    assert driver.violations == []


def test_requests_run_at_the_same_time_and_those_of_a_slot_one_after_another() -> None:
    driver = FakeDriver()
    pipeline = build(driver, (0, 1), FIRST)  # three slots
    x = given(driver, FIRST)
    clocks = [pipeline.submit([(0, x)])._events[0].clock for _ in range(4)]  # type: ignore[attr-defined]
    own = {name: tick for name, tick in clocks[0].items() if tick > clocks[1].get(name, 0)}
    assert own  # what the first request did, and the second did not wait for
    is_after = [all(clock.get(name, 0) >= tick for name, tick in own.items()) for clock in clocks]
    assert is_after == [True, False, False, True]
    pipeline.close()


def test_each_stage_is_captured_under_its_own_window(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[torch.device, FakeCalls] = {}
    monkeypatch.setattr(stream_pipeline, "bindings", lambda device: calls.setdefault(device, FakeCalls(most=1000)))
    driver, seen = FakeDriver(), []

    def layer(x: Tensor, w: Tensor) -> list[Tensor]:
        if driver.captured is not None:
            seen.append(calls[FIRST].windows[driver.launching.cuda_stream].address == w.data_ptr())
        return driver.kernel("", lambda x, w: [x * w])(x, w)

    weights = [torch.full((1,), 2.0) for _ in range(2)]
    steps = [CudaStep(FIRST, layer, (i, weights[i]), (i + 1,), (i,), True) for i in range(2)]
    example = [(0, given(driver, FIRST))]
    pipeline = CudaPipeline(steps, 3, (2,), 2, graphs=True, persist=True, examples=[example], driver=driver)
    assert seen == [True] * 4  # two stages in two slots
    pipeline.close()
    assert all(window.size == 0 for window in calls[FIRST].windows.values())


def test_there_are_no_more_slots_than_requests_in_flight() -> None:
    driver = FakeDriver()
    pipeline = build(driver, (0, 1, 0), FIRST, inflight=2)
    pipeline.close()
    assert driver.resets == 2


def test_each_size_of_the_examples_has_a_graph_in_each_slot() -> None:
    driver = FakeDriver()
    pipeline = build(driver, (0,), FIRST, sizes=(2, 3))
    for size, replays in ((2, 1), (3, 2), (4, 2), (3, 3)):
        (result,) = pipeline.submit([(0, given(driver, FIRST, size))]).take()
        assert result.tolist() == [2.0] * size and driver.replays == replays
    pipeline.close()
    assert driver.resets == 4 and driver.violations == []


def test_a_result_is_not_written_by_later_requests() -> None:
    driver = FakeDriver()
    pipeline = build(driver, (0, 1), FIRST)
    inputs = [driver.put(torch.full((2,), float(i)), FIRST) for i in range(9)]
    results = [pipeline.submit([(0, x)]).take()[0] for x in inputs]
    assert [result[0].item() for result in results] == [4.0 * i for i in range(9)]
    pipeline.close()


def test_an_input_that_the_caller_drops_lives_until_it_is_copied() -> None:
    driver = FakeDriver()
    pipeline = build(driver, (0, 1), FIRST)
    pending = [pipeline.submit([(0, given(driver, FIRST))]) for _ in range(6)]
    del pending  # nobody takes the results either
    driver.sweep()
    pipeline.close()
    assert driver.violations == []


def test_weights_that_change_reach_the_graphs() -> None:
    driver = FakeDriver()
    weights = [driver.put(torch.full((1,), 2.0), FIRST) for _ in range(2)]  # read there, and copied to the second
    pipeline = build(driver, (0, 1), FIRST, weights=weights)
    pending = [pipeline.submit([(0, given(driver, FIRST))]) for _ in range(2)]
    values = []
    for factor in (3.0, 0.5):
        for weight in weights:
            weight.mul_(factor)
        driver.access(driver.current(FIRST), [], [])
        values.append(pipeline.submit([(0, given(driver, FIRST))]).take()[0][0].item())
    assert values == [36, 9] and driver.replays == 4 and [p.take()[0][0].item() for p in pending] == [4, 4]
    pipeline.close()


def test_a_capture_that_fails_is_said_and_requests_run_all_the_same() -> None:
    driver = FakeDriver()
    driver.capture_error = "a kernel synchronises"
    with pytest.warns(PartitionWarning) as caught:
        pipeline = build(driver, (0, 1), FIRST)
    texts = [str(warning.message) for warning in caught]
    assert "one CUDA graph for all stages: RuntimeError: a kernel synchronises" in texts[0]
    assert sum("runs without a CUDA graph" in text for text in texts) == 2
    assert pipeline.submit([(0, given(driver, FIRST))]).take()[0].tolist() == [4.0, 4.0]
    assert driver.replays == 0 and driver.violations == []
    pipeline.close()


def test_a_result_is_an_input_a_number_and_on_another_gpu() -> None:
    """What returns to another GPU than that of the inputs is copied there, and its memory is that GPU's."""
    driver = FakeDriver()
    step = CudaStep(SECOND, driver.kernel("", lambda x: [x + 1, x.shape[0]]), (0,), (1, 2), (), True)
    x = given(driver, FIRST)
    pipeline = CudaPipeline(
        [step], 3, (1, 2, 0, 1), 4, graphs=True, persist=False, examples=[[(0, x)]], homes={1: SECOND}, driver=driver
    )
    for _ in range(5):
        made, rows, same, again = pipeline.submit([(0, x)]).take()
        assert (made.tolist(), rows, same.tolist(), again.tolist()) == ([2.0, 2.0], 2, [1.0, 1.0], [2.0, 2.0])
        assert driver.device_of(made) == driver.device_of(again) == SECOND and driver.device_of(same) == FIRST
        for tensor in (made, same, again):
            driver.read_by_caller(tensor)
    assert driver.replays == 5 and driver.violations == []
    pipeline.close()
