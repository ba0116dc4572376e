"""Closing a pipeline in use: started requests return their results, all others are refused."""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from made_pipelines import Made, X

from fx_partition.backends.streaming.pipeline import Pipeline

CLIENTS, ROUNDS = 4, 30


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Threads of Python change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def submits(pipe: Pipeline, found: list[Any]) -> None:
    futures = []
    try:
        found.append(pipe.submit(X).result(timeout=20))  # so that the test knows that it has begun
        while True:
            futures.append(pipe.submit(X))
    except RuntimeError as error:
        assert str(error) == "the pipeline is closed"
    found += [future.result(timeout=20) for future in futures]


def calls(pipe: Pipeline, found: list[Any]) -> None:
    try:
        while True:
            found.append(pipe(X))
    except RuntimeError as error:
        assert str(error) == "the pipeline is closed"


def maps(pipe: Pipeline, found: list[Any]) -> None:
    try:
        for result in pipe.map(iter(lambda: X, None)):
            found.append(result)  # noqa: PERF402 - what came before the exception counts
    except RuntimeError as error:
        assert str(error) == "the pipeline is closed"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("kind", "client"), [("local", submits), ("local", calls), ("local", maps), ("cuda", submits)]
)
def test_every_request_ends_when_others_close(
    made: Made, many_switches: None, kind: str, client: Callable[[Pipeline, list[Any]], None]
) -> None:
    results = 0
    for turn in range(ROUNDS):
        pipe = made.pipeline(getattr(made, kind)())
        found: list[Any] = []
        failures: list[BaseException] = []

        def body(pipe: Pipeline = pipe, found: list[Any] = found, failures: list[BaseException] = failures) -> None:
            try:
                client(pipe, found)
            except BaseException as error:
                failures.append(error)

        clients = [threading.Thread(target=body, daemon=True) for _ in range(CLIENTS)]
        for thread in clients:
            thread.start()
        while len(found) < min(turn % 5, 1 if client is submits else 4):
            clients[0].join(timeout=0.001)
        clients[0].join(timeout=turn % 7 * 0.001)
        pipe.close()
        for thread in clients:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in clients), f"a request of round {turn} never ended"
        assert not failures
        for result in found:
            torch.testing.assert_close(result, made.expected)
        results += len(found)
    assert results, "no request was ever accepted"


class Now:
    """A runtime that is each of its pending requests too: one is finished when it is started."""

    def __init__(self, then: Callable[[], None] = lambda: None, outcome: BaseException | None = None) -> None:
        self.then, self.outcome = then, outcome
        self.closed = False
        self.tensors: list[torch.Tensor] = []

    def submit(self, numbers: tuple[int, ...], tensors: list[torch.Tensor], until: float = math.inf) -> Now:
        self.tensors = tensors
        self.then()
        return self

    def close(self) -> None:
        self.closed = True

    def wait(self, until: float = math.inf) -> bool:
        if self.outcome is not None:
            raise self.outcome
        return True

    def take(self) -> list[torch.Tensor]:
        return self.tensors


def test_a_request_that_was_started_before_close_gets_its_result_after_it(made: Made) -> None:
    runtime = Now()
    pipe = made.pipeline(runtime)
    runtime.then = pipe.close
    future = pipe.submit(X)
    assert runtime.closed
    assert future.result(timeout=10) is X
    with pytest.raises(RuntimeError, match="closed"):
        pipe.submit(X)


def test_a_callback_of_a_future_may_close_the_pipeline(made: Made) -> None:
    runtime = Now()
    pipe = made.pipeline(runtime)
    future, closed = pipe.submit(X), threading.Event()

    def close(_: Any) -> None:
        pipe.close()
        closed.set()

    future.add_done_callback(close)
    assert closed.wait(timeout=10) and runtime.closed


@pytest.mark.parametrize("outcome", [RuntimeError("a device is lost"), SystemExit(3)])
def test_whatever_a_request_raises_ends_its_future_alone(made: Made, outcome: BaseException) -> None:
    runtime = Now(outcome=outcome)
    with made.pipeline(runtime) as pipe:
        with pytest.raises(type(outcome)):
            pipe.submit(X).result(timeout=10)
        runtime.outcome = None
        assert pipe.submit(X).result(timeout=10) is X


def test_a_request_that_failed_goes_with_its_future(made: Made) -> None:
    class Failed(RuntimeError):
        pass

    with made.pipeline(Now(outcome=Failed())) as pipe:
        future = pipe.submit(X)
        assert isinstance(future.exception(timeout=10), Failed)
        kept = weakref.ref(future)
        gc.collect()
        gc.disable()
        try:
            del future
            deadline = time.monotonic() + 10
            while kept() is not None and time.monotonic() < deadline:
                time.sleep(0.01)  # the thread that settled it may not have let go of it yet
            assert kept() is None
        finally:
            gc.enable()
