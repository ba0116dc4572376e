"""The CUDA runtime orders, captures and resets the right work, on CPU tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from cuda_fakes import HOST, FakeCalls, FakeDriver
from torch import Tensor

from fx_partition.backends.cuda import stream_pipeline
from fx_partition.backends.cuda.enqueued_request import EnqueuedRequest
from fx_partition.backends.cuda.stage_step import CudaStep
from fx_partition.backends.cuda.stream_pipeline import WARM_UP, CudaPipeline
from fx_partition.common.errors import PartitionWarning

PLACES = {"two": (0, 1), "one": (0,), "same": (0, 0), "wrapped": (0, 1, 0, 1), "skips": (0, 1, 2)}


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[torch.device, FakeCalls]]:
    """L2 persistence that notes what it is asked, by device."""
    found: dict[torch.device, FakeCalls] = {}
    monkeypatch.setattr(stream_pipeline, "bindings", lambda device: found.setdefault(device, FakeCalls()))
    yield found


def weights_of(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 4) for _ in range(count)]


def reference(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Each layer adds the input of the request, so that it crosses to every stage; the first layer is a result too."""
    first = y = torch.relu(x @ weights[0]) + x
    for weight in weights[1:]:
        y = torch.relu(y @ weight) + x
    return [y, first]


def build(
    driver: FakeDriver,
    places: Sequence[int],
    weights: Sequence[Tensor],
    inflight: int = 3,
    graphs: str = "",
    example: Tensor | None = None,
    **options: Any,
) -> CudaPipeline:
    """One layer a stage. Value 0 is the request's input, value i + 1 what stage i makes.

    Graphs are of whole "requests" or of "stages"; stages that compute on the host have graphs of their own.
    """

    def layer(y: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
        return [torch.relu(y @ weight) + x]

    last = len(places)
    steps = [
        CudaStep(
            device=torch.device(f"cpu:{place}"),
            function=driver.kernel(f"stage {i}", layer),
            inputs=(i, 0, weights[i]),
            outputs=(i + 1,),
            last_uses=(i,) if i > 1 else (0,) if i == last - 1 and last > 1 else (),
            static=True,
            computes_on_host=graphs == "stages",
        )
        for i, place in enumerate(places)
    ]
    examples = [[(0, torch.zeros(2, 4) if example is None else example)]] if graphs else []
    options = {"graphs": bool(graphs), "persist": False, "examples": examples, **options}
    return CudaPipeline(steps, last + 1, (last, 1), inflight, driver=driver, **options)


def stream_requests(pipeline: CudaPipeline, driver: FakeDriver, home: torch.device, count: int) -> list[list[Tensor]]:
    """Submit all requests, inputs and pending requests dropped as soon as a caller would."""
    pending: list[EnqueuedRequest] = []
    results = []
    for i in range(count):
        x = torch.full((2, 4), float(i))
        if home != HOST:
            driver.put(x, home)
        pending.append(pipeline.submit([(0, x)]))
        del x
        if len(pending) == 3:
            results.append(pending.pop(0).take())
    results += [request.take() for request in pending]
    for result in results:
        for tensor in result:
            driver.read_by_caller(tensor)
    return results


def run(driver: FakeDriver, places: Sequence[int], home: torch.device, count: int = 7, **options: Any) -> FakeDriver:
    weights, example = weights_of(len(places)), torch.zeros(2, 4)
    if home != HOST:
        driver.put(example, home)
    pipeline = build(driver, places, weights, example=example, **options)
    results = stream_requests(pipeline, driver, home, count)
    for i, result in enumerate(results):
        for given, right in zip(result, reference(torch.full((2, 4), float(i)), weights), strict=True):
            torch.testing.assert_close(given, right)
            assert driver.device_of(given) == home
    pipeline.close()
    del result, results, given
    driver.sweep()
    return driver


@pytest.mark.parametrize("graphs", ["", "stages", "requests"])
@pytest.mark.parametrize("home", [HOST, torch.device("cpu:0"), torch.device("cpu:1")], ids=["host", "first", "second"])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_results_and_order(places: Sequence[int], home: torch.device, graphs: str) -> None:
    driver = run(FakeDriver(), places, home, graphs=graphs)
    assert driver.violations == []
    # Stages are replayed in the last request that warms up, and in all seven.
    assert driver.replays == {"": 0, "stages": 8 * len(places), "requests": 7}[graphs]
    assert driver.resets == {"": 0, "stages": len(places), "requests": min(3, len(places) + 1)}[graphs]


def run_chain(driver: FakeDriver, places: Sequence[int], home: torch.device, graphs: str) -> tuple[range, range]:
    """Stages without weights, each of which takes what the one before it makes, and nothing else.

    The caller reads a result once and drops it. Returns the numbers of the waits and uses from the first request until
    it did so first.
    """
    steps = [
        CudaStep(
            torch.device(f"cpu:{place}"),
            driver.kernel("", lambda x: [x + 1]),
            (i,),
            (i + 1,),
            (i,),
            static=True,
            computes_on_host=graphs == "stages",
        )
        for i, place in enumerate(places)
    ]
    example = torch.zeros(2)
    if home != HOST:
        driver.put(example, home)
    options = {"graphs": bool(graphs), "persist": False, "examples": [[(0, example)]] if graphs else []}
    most = 6 if graphs == "requests" else 3  # more than there are slots, so that requests of one overlap
    pipeline = CudaPipeline(steps, len(places) + 1, (len(places),), most, driver=driver, **options)
    before = driver.waits, driver.uses
    pending: list[EnqueuedRequest] = []
    counts = None
    for i in range(12):
        x = torch.full((2,), float(i))
        pending.append(pipeline.submit([(0, x if home == HOST else driver.put(x, home))]))
        del x
        if len(pending) == most:
            driver.read_by_caller(pending.pop(0).take()[0])
            counts = counts or (range(before[0], driver.waits), range(before[1], driver.uses))
    pipeline.close()
    driver.sweep()
    assert counts is not None
    return counts


@pytest.mark.parametrize("forgotten", [0, 1], ids=["wait", "use"])
@pytest.mark.parametrize("graphs", ["", "stages", "requests"])
@pytest.mark.parametrize("home", [HOST, torch.device("cpu:0"), torch.device("cpu:1")], ids=["host", "first", "second"])
@pytest.mark.parametrize("places", [(0, 1), (0, 0), (0, 1, 0, 1)])
def test_what_is_left_out_is_found(places: Sequence[int], home: torch.device, graphs: str, forgotten: int) -> None:
    """No wait and no ``used_on`` is there for nothing: without any one of them, something is not ordered."""
    right = FakeDriver()
    numbers = run_chain(right, places, home, graphs)[forgotten]
    assert right.violations == [] and (graphs == "requests" or len(numbers) >= len(places))
    silent = []
    for n in (number + 1 for number in numbers):
        driver = FakeDriver(**{("forgotten_wait", "forgotten_use")[forgotten]: n})
        run_chain(driver, places, home, graphs)
        if not driver.violations:
            silent.append(n)
    assert silent == []


@pytest.mark.parametrize("places", [(0, 1), (0, 0), (0, 1, 0, 1)])
def test_requests_overlap(places: Sequence[int]) -> None:
    """A stage takes the second request while later stages have the first, wrapped around as well."""
    driver = run(FakeDriver(), places, HOST, count=2, inflight=2)
    first, second = driver.runs[: len(places)], driver.runs[len(places) :]
    for i, late in enumerate(second):
        for j, early in enumerate(first):
            assert late.is_after(early) == (j <= i), (late.name, early.name)


def test_no_more_in_flight_than_asked() -> None:
    driver = FakeDriver()
    pipeline = build(driver, (0, 1), weights_of(2), inflight=2)
    pending = [pipeline.submit([(0, torch.ones(2, 4))]) for _ in range(3)]
    assert [request.wait(0) for request in pending] == [True, False, False]
    pending[1].take()
    assert pending[1].wait(0) and not pending[2].wait(0)
    pipeline.close()
    assert pending[2].wait(0)


def test_what_a_stage_raises_comes_with_its_request() -> None:
    driver = FakeDriver()

    def fail_for_negative(x: Tensor) -> list[Tensor]:
        if bool((x < 0).any()):
            raise ArithmeticError("negative")
        return [x.sqrt()]

    first = CudaStep(torch.device("cpu:0"), driver.kernel("first", lambda x: [x + 0]), (0,), (1,), (0,), False)
    second = CudaStep(torch.device("cpu:1"), driver.kernel("second", fail_for_negative), (1,), (2,), (1,), True)
    pipeline = CudaPipeline([first, second], 3, (2,), 4, graphs=True, persist=False, driver=driver)
    with warnings.catch_warnings(record=True):
        pending = [pipeline.submit([(0, torch.full((1,), v))]) for v in (4.0, -1.0, 9.0, -4.0, 16.0)]
    for request, root in zip(pending, (2, None, 3, None, 4), strict=True):
        if root is None:
            with pytest.raises(ArithmeticError, match="negative"):
                request.take()
        else:
            assert request.take()[0].item() == root
    pipeline.close()
    assert driver.violations == []


def test_a_capture_that_fails_warns_and_runs_without() -> None:
    driver = FakeDriver()
    driver.capture_error = "a kernel synchronises"
    with pytest.warns(PartitionWarning, match="cpu:0 runs without a CUDA graph: RuntimeError: a kernel synchronises"):
        run(driver, (0,), HOST, graphs="stages")
    assert driver.replays == 0 and driver.violations == []


def test_an_input_with_gaps_is_not_captured() -> None:
    driver = FakeDriver()
    step = CudaStep(torch.device("cpu:0"), driver.kernel("sum", lambda x: [x.sum(0)]), (0,), (1,), (0,), True)
    x = driver.put(torch.ones(1, 4), torch.device("cpu:0")).expand(3, 4)
    options = {"graphs": True, "persist": False, "examples": [[(0, x)]]}
    with pytest.warns(PartitionWarning, match="has gaps or overlaps itself") as caught:
        pipeline = CudaPipeline([step], 2, (1,), 2, driver=driver, **options)
    assert len(caught) == 2  # neither the whole request nor the stage
    results = [pipeline.submit([(0, x)]).take()[0] for _ in range(4)]
    assert all(torch.equal(result, torch.full((4,), 3.0)) for result in results)


def test_each_example_has_its_graph_and_other_sizes_run_without() -> None:
    driver = FakeDriver()
    function = driver.kernel("double", lambda x, n: [x * n])
    for static in (True, False):
        step = CudaStep(torch.device("cpu:0"), function, (0, 1), (2,), (0, 1), static)
        examples = [[(0, torch.zeros(size)), (1, 2)] for size in (2, 3)]
        options = {"graphs": True, "persist": False, "examples": examples, "driver": driver}
        pipeline = CudaPipeline([step], 3, (2,), 8, **options)
        driver.replays = 0
        for size in (2, 3, 4, 2, 3, 4, 2, 3):  # nothing is captured for 4
            (result,) = pipeline.submit([(0, torch.arange(float(size))), (1, 2)]).take()
            assert torch.equal(result, 2 * torch.arange(float(size)))
        assert driver.replays == 6
        pipeline.close()


def test_numbers_pass_through_the_table() -> None:
    driver = FakeDriver()
    step = CudaStep(torch.device("cpu:0"), driver.kernel("rows", lambda x: [x.shape[0], x + 1]), (0,), (1, 2), (), True)
    pipeline = CudaPipeline([step], 3, (1, 2, 0), 2, graphs=False, persist=False, driver=driver)
    rows, result, given = pipeline.submit([(0, torch.zeros(5))]).take()
    assert rows == 5 and torch.equal(result, torch.ones(5)) and torch.equal(given, torch.zeros(5))


def test_weights_that_change_are_copied_again() -> None:
    driver = FakeDriver()
    weights = weights_of(2)
    pipeline = build(driver, (0, 1), weights)
    x = torch.ones(2, 4)
    for _ in range(2):
        torch.testing.assert_close(pipeline.submit([(0, x)]).take(), reference(x, weights))
        weights[1].mul_(2)


def test_weights_are_copied_again_between_two_writes_of_the_caller() -> None:
    """The stage waits for the write that it has seen, and the caller's next one for the copy."""
    driver = FakeDriver()
    home = torch.device("cpu:1")
    weights = [driver.put(weight, home) for weight in weights_of(1)]
    pipeline = build(driver, (0,), weights)
    before = driver.waits
    pipeline.submit([(0, torch.ones(2, 4))]).take()
    usual = driver.waits - before
    weights[0].mul_(2)
    driver.access(driver.current(home), [], weights)
    written = driver.current(home).clock.copy()
    pipeline.submit([(0, torch.ones(2, 4))]).take()
    assert driver.waits - before == 2 * usual + 2
    assert all(driver.runs[1].before.get(name, 0) >= tick for name, tick in written.items())
    assert driver.current(home).clock[driver.runs[0].stream] >= driver.runs[0].tick
    pipeline.close()


def test_weights_that_are_used_where_they_are_are_read_after_the_caller_wrote_them() -> None:
    """The request's input is on the host, so that nothing of it orders the stage after the caller's stream."""
    driver = FakeDriver()
    home = torch.device("cpu:0")
    weights = [driver.put(weight, home) for weight in weights_of(1)]
    pipeline = build(driver, (0,), weights)
    x = torch.ones(2, 4)
    for _ in range(2):
        torch.testing.assert_close(pipeline.submit([(0, x)]).take(), reference(x, weights))
        weights[0].mul_(2)
        driver.access(driver.current(home), [], weights)
    waits = [driver.waits]
    for _ in range(2):
        pipeline.submit([(0, x)]).take()
        waits.append(driver.waits)
    assert waits[1] - waits[0] == waits[2] - waits[1] + 1  # once for each write
    assert driver.violations == []
    pipeline.close()


def test_what_is_on_the_host_on_purpose_stays_there() -> None:
    """A weight, and a value that crosses; results go to their homes, wherever the first input is."""
    driver = FakeDriver()
    scale, seen = torch.tensor(3.0), []

    def first(x: Tensor) -> list[Tensor]:
        return [driver.kernel("", lambda x: [x + 1])(x)[0], torch.tensor(2.0)]

    def second(y: Tensor, factor: Tensor, scale: Tensor) -> list[Tensor]:
        seen.append((driver.device_of(y), driver.device_of(factor), scale))
        return driver.kernel("", lambda y: [y * float(factor * scale)])(y)

    on_two = [torch.device("cpu:0"), torch.device("cpu:1")]
    pipeline = CudaPipeline(
        [
            CudaStep(on_two[0], first, (0,), (1, 2), (0,), False, outputs_on_host=frozenset({1})),
            CudaStep(on_two[1], second, (1, 2, scale), (3,), (), False, inputs_on_host=frozenset({1, 2})),
        ],
        4,
        (3, 2, 1),
        2,
        graphs=True,
        persist=False,
        homes={3: on_two[1], 2: HOST, 1: on_two[1]},
        driver=driver,
    )
    for _ in range(3):
        results = pipeline.submit([(0, torch.ones(2))]).take()
        assert [driver.device_of(result) for result in results] == [on_two[1], HOST, on_two[1]]
        assert [result.flatten()[0].item() for result in results] == [12, 2, 2]
        for result in results:
            driver.read_by_caller(result)
    pipeline.close()
    assert driver.violations == []
    assert all((y, f) == (on_two[1], HOST) and s.data_ptr() == scale.data_ptr() for y, f, s in seen)


@pytest.mark.parametrize("persist", [False, True])
def test_weights_are_packed_where_they_must_be(persist: bool) -> None:
    driver = FakeDriver()
    weights = weights_of(2)
    driver.put(weights[0], torch.device("cpu:0"))
    seen: list[Tensor] = []

    def layer(x: Tensor, weight: Tensor) -> list[Tensor]:
        seen.append(weight)
        return [x @ weight]

    steps = [CudaStep(torch.device("cpu:0"), layer, (i, weights[i]), (i + 1,), (), False) for i in range(2)]
    pipeline = CudaPipeline(steps, 3, (2,), 2, graphs=False, persist=persist, driver=driver)
    pipeline.submit([(0, torch.ones(2, 4))]).take()
    assert [a.data_ptr() == b.data_ptr() for a, b in zip(seen, weights, strict=True)] == [not persist, False]
    pipeline.close()


def test_l2_windows_are_set_first_and_taken_back_after_a_failure(calls: dict[torch.device, FakeCalls]) -> None:
    driver = FakeDriver()
    pipeline = build(driver, (0, 0, 1), weights_of(3), graphs="stages", persist=True)  # 64 bytes of weights a stage
    one, two = calls[torch.device("cpu:0")], calls[torch.device("cpu:1")]
    assert one.log == [("change_set_aside", 40), ("set_window", 64), ("set_window", 64)]
    assert [window.hit_ratio for window in one.windows.values()] == [40 / 128] * 2
    assert [window.hit_ratio for window in two.windows.values()] == [40 / 64]
    request = pipeline.submit([(0, torch.ones(7, 7))])
    with pytest.raises(RuntimeError):
        request.take()
    pipeline.close()
    pipeline.close()
    assert one.log[3:] == [("set_window", 0), ("set_window", 0), ("reset_lines",), ("change_set_aside", 7)]
    assert two.log[2:] == [("set_window", 0), ("reset_lines",), ("change_set_aside", 7)]
    with pytest.raises(RuntimeError, match="the pipeline is closed"):
        pipeline.submit([(0, torch.ones(2, 4))])


def test_close_resets_although_a_device_failed(calls: dict[torch.device, FakeCalls]) -> None:
    class Broken(FakeDriver):
        broken = False

        def synchronize(self, device: torch.device) -> None:
            super().synchronize(device)
            if self.broken:
                raise RuntimeError("device-side assert")

    driver = Broken()
    pipeline = build(driver, (0, 1), weights_of(2), persist=True)
    driver.broken = True
    with pytest.raises(RuntimeError, match="device-side assert"):
        pipeline.close()
    assert all(found.log[-1] == ("change_set_aside", 7) for found in calls.values()) and len(calls) == 2


def test_the_first_request_finds_everything_loaded_and_captured() -> None:
    driver = FakeDriver()
    pipeline = build(driver, (0, 1), weights_of(2), graphs="stages")
    ran, replayed = len(driver.runs), driver.replays
    pipeline.submit([(0, torch.ones(2, 4))]).take()
    assert ran >= WARM_UP * 2 and ran == len(driver.runs) and driver.replays == replayed + 2
    pipeline.close()


def test_an_example_that_fails_is_said_and_requests_run_without_graphs() -> None:
    driver = FakeDriver()
    with pytest.warns(PartitionWarning, match="could not be warmed up with the example inputs.*RuntimeError"):
        pipeline = build(driver, (0, 1), weights_of(2), graphs="requests", examples=[[(0, torch.ones(7, 7))]])
    x = torch.ones(2, 4)
    torch.testing.assert_close(pipeline.submit([(0, x)]).take(), reference(x, weights_of(2)))
    assert driver.replays == 0
    pipeline.close()
