"""A wait for a pipeline ends: after a time if one is given, and at once in a forked child."""

from __future__ import annotations

import concurrent.futures
import gc
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cuda_fakes import FakeDriver, FakeEvent
from forks import in_a_child
from made_pipelines import INFLIGHT, Made, X
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from fx_partition import PartitionError
from fx_partition.backends.streaming.pipeline import Pipeline
from fx_partition.backends.streaming.request_signature import RequestSignature
from fx_partition.backends.weights import lazy_weights
from fx_partition.passes.capture.capture_model import capture

SOON = 0.05


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


class Held:
    """A pipeline whose stages wait until they are let go."""

    def __init__(self, made: Made) -> None:
        self.go, self.calls = threading.Event(), 0
        self.pipe = made.pipeline(made.local(self._before))

    def _before(self) -> None:
        self.calls += 1
        self.go.wait(timeout=60)


@pytest.fixture
def held(made: Made) -> Iterator[Held]:
    found = Held(made)
    yield found
    found.go.set()
    found.pipe.close()


@pytest.mark.parametrize("timeout", [SOON, 0, 0.0])
def test_a_call_waits_no_longer_than_its_timeout(made: Made, held: Held, timeout: float) -> None:
    with pytest.raises(TimeoutError, match="timeout="):
        held.pipe(X, timeout=timeout)
    held.go.set()
    for timeout in (60, math.inf, None):
        torch.testing.assert_close(held.pipe(X, timeout=timeout), made.expected)


def test_a_future_is_waited_for_no_longer_than_its_timeout(made: Made, held: Held) -> None:
    future = held.pipe.submit(X)
    for wait in (future.result, future.exception):
        with pytest.raises(concurrent.futures.TimeoutError):  # another than TimeoutError until Python 3.11
            wait(timeout=SOON)
    held.go.set()
    torch.testing.assert_close(future.result(timeout=60), made.expected)


def test_what_does_not_start_in_time_never_runs(made: Made, held: Held) -> None:
    futures = [held.pipe.submit(X, timeout=60) for _ in range(INFLIGHT)]
    for enter in (held.pipe.submit, held.pipe):
        with pytest.raises(TimeoutError, match="in flight"):
            enter(X, timeout=SOON)
    held.go.set()
    for future in futures:
        torch.testing.assert_close(future.result(timeout=60), made.expected)
    held.pipe.close()
    assert held.calls == 2 * INFLIGHT


def test_inputs_of_a_request_that_nobody_waits_for_live_until_it_is_finished(made: Made, held: Held) -> None:
    x = X.clone()
    kept = StorageWeakRef(x.untyped_storage())
    with pytest.raises(TimeoutError):
        held.pipe(x, timeout=SOON)
    del x
    assert not kept.expired()
    held.go.set()
    torch.testing.assert_close(held.pipe(X), made.expected)
    held.pipe.close()
    assert kept.expired() and held.calls == 4


@pytest.mark.parametrize("timeout", [-1, -0.1, float("nan"), "1", True, [1]])
def test_a_timeout_that_is_none_starts_nothing(made: Made, held: Held, timeout: Any) -> None:
    for enter in (held.pipe, held.pipe.submit):
        with pytest.raises(PartitionError, match=r"timeout=.*seconds"):
            enter(X, timeout=timeout)
    held.pipe.close()
    assert held.calls == 0


class Patient(nn.Module):
    def forward(self, x: torch.Tensor, *, timeout: torch.Tensor) -> torch.Tensor:
        return x * timeout


class Keeps:
    """A runtime whose requests are never finished, and which notes until when it is asked to wait."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []
        self.until: list[float] = []

    def submit(self, numbers: tuple[int, ...], tensors: list[torch.Tensor], until: float = math.inf) -> Keeps:
        self.given = tensors
        self.until.append(until)
        return self

    def wait(self, until: float = math.inf) -> bool:
        self.until.append(until)
        return False

    def take(self) -> list[torch.Tensor]:
        raise AssertionError("it is not finished")

    def close(self) -> None: ...


def test_a_model_s_own_keyword_called_timeout_is_the_model_s(made: Made) -> None:
    inputs = {"x": X, "timeout": torch.tensor(3.0)}
    captured = capture(Patient(), inputs)
    signature = RequestSignature(captured, made.program, inputs)
    signature._wanted = [0, 1]
    runtime = Keeps()
    pipe = Pipeline(made.plan, signature, runtime, INFLIGHT)
    with pytest.raises(TimeoutError):
        pipe(**inputs)
    assert runtime.given[1] is inputs["timeout"] and runtime.until == [math.inf, math.inf]


def test_both_waits_of_a_call_share_its_time(made: Made) -> None:
    runtime = Keeps()
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        made.pipeline(runtime)(X, timeout=1000)
    assert before + 1000 <= runtime.until[0] == runtime.until[1] <= time.monotonic() + 1000


def test_a_gpu_is_waited_for_no_longer_than_its_timeout(made: Made) -> None:
    """Nothing of the fake driver happens before the host waits for it."""
    driver = FakeDriver()
    runtime = made.cuda(driver)
    with made.pipeline(runtime) as pipe:
        for _ in range(INFLIGHT):
            with pytest.raises(TimeoutError, match="timeout="):
                pipe(X, timeout=SOON)
        runs = len(driver.runs)
        for enter in (pipe, pipe.submit):
            with pytest.raises(TimeoutError, match="in flight"):
                enter(X, timeout=SOON)
        assert len(driver.runs) == runs
        torch.testing.assert_close(pipe(X), made.expected)
        with runtime._lock, pytest.raises(TimeoutError, match="another thread"):
            pipe(X, timeout=SOON)
    assert not driver.violations


def test_a_gpu_that_is_done_in_time_gives_its_results(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(1000))
    monkeypatch.setattr(FakeEvent, "query", lambda event: next(looks) >= 7)
    with made.pipeline(made.cuda()) as pipe:
        torch.testing.assert_close(pipe(X, timeout=60), made.expected)
    assert next(looks) > 7


REFUSED = "RuntimeError: the pipeline was made in process"
USES: dict[str, Callable[[Pipeline], Any]] = {
    "call": lambda pipe: pipe(X),
    "call with a timeout": lambda pipe: pipe(X, timeout=1),
    "submit": lambda pipe: pipe.submit(X),
    "map": lambda pipe: pipe.map([X]),
}


@pytest.mark.parametrize("kind", ["local", "cuda"])
@pytest.mark.parametrize("use", list(USES))
def test_a_forked_child_is_refused_at_once(made: Made, kind: str, use: str) -> None:
    with made.pipeline(getattr(made, kind)()) as pipe:
        torch.testing.assert_close(pipe(X), made.expected)
        assert in_a_child(lambda: USES[use](pipe)).startswith(REFUSED)
        torch.testing.assert_close(pipe(X), made.expected)


def test_what_was_begun_before_a_fork_is_refused_in_the_child(made: Made, held: Held) -> None:
    future = held.pipe.submit(X)
    for wait in (future.result, future.exception, lambda: future.result(timeout=1)):
        assert in_a_child(wait).startswith("RuntimeError: the request of this future was made in process")
    held.go.set()
    torch.testing.assert_close(future.result(timeout=60), made.expected)
    results = held.pipe.map([X] * 6)
    next(results)
    assert in_a_child(lambda: list(results)).startswith(REFUSED)
    assert in_a_child(results.close) == "None"
    assert len(list(results)) == 5


@pytest.mark.parametrize("kind", ["local", "cuda"])
def test_a_forked_child_may_close_and_forget_a_pipeline(made: Made, kind: str) -> None:
    pipe = made.pipeline(getattr(made, kind)())
    future = pipe.submit(X)

    def close() -> None:
        pipe._collector._lock.acquire()  # as a thread of the parent may have done at the moment of the fork
        with pipe:
            pipe.close()

    def forget() -> None:
        nonlocal pipe
        del pipe
        gc.collect()

    assert in_a_child(close) == "None"
    assert in_a_child(forget) == "None"
    torch.testing.assert_close(future.result(timeout=60), made.expected)
    torch.testing.assert_close(pipe(X), made.expected)
    pipe.close()


def test_a_forked_child_reads_weights_that_a_thread_of_its_parent_was_reading() -> None:
    with lazy_weights._LOCK:
        assert in_a_child(lambda: lazy_weights.materialize([])) == "None"
    lazy_weights.materialize([])


@pytest.mark.slow
def test_a_script_forks_while_a_stage_works_and_both_processes_end() -> None:
    script = """
        import os, sys, threading, torch
        from forks import ends
        from made_pipelines import Made, X
        made, begun, go = Made(), threading.Event(), threading.Event()
        pipe = made.pipeline(made.local(lambda: begun.set() or go.wait(60)))
        future = pipe.submit(X)
        begun.wait(60)
        child = os.fork()
        if child == 0:
            sys.exit(0)  # through the end of the interpreter, with a pipeline that is not closed
        print("the child ends" if ends(child) else "the child hangs")
        go.set()
        torch.testing.assert_close(future.result(60), made.expected)
    """
    folders = [*sys.path, os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )  # fmt: skip
    assert result.stdout == "the child ends\n" and result.returncode == 0, result.stderr
