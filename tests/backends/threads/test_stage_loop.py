"""Every error in the extension of stage threads becomes a Python exception, and no error ends a thread."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import fx_partition
from fx_partition import PartitionError
from fx_partition.backends.lowering.torch_internals import tensors_of, to_handles
from fx_partition.backends.streaming.program import Program, make_program
from fx_partition.backends.threads import runtime
from fx_partition.backends.threads.aoti_compile import Code
from fx_partition.backends.threads.build_extension import compiled, stage_loop
from fx_partition.backends.threads.runtime import LocalRuntime, StageError
from fx_partition.hardware.cores import allowed_cores
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import cut, planned_graph

LOOP = stage_loop()
CORES = allowed_cores()[:1]
X = torch.ones(2, 4)


def new_pipe() -> Any:
    """Of one stage in Python: value 1 is made of value 0 and a weight."""
    return LOOP.create([(None, (0, -1), to_handles([X]), (1,), [()], (0,), 1)], 2, (1,), 2, 0)


def stage(**change: Any) -> list[Any]:
    given: dict[str, Any] = {"path": None, "inputs": (0,), "weights": [], "outputs": (1,), "orders": [()], "dead": ()}
    given |= {"replicas": 1} | change
    return [tuple(given.values())]


class Odd:
    """Neither a number nor a sequence, and it says so."""

    def __index__(self) -> int:
        raise KeyError("no number")

    def __iter__(self) -> Iterator[int]:
        raise KeyError("no sequence")


WRONG_CALLS = {
    "no stage": ("create", lambda: ([], 2, (1,), 1, 0), ValueError),
    "a stage that is none": ("create", lambda: ([3], 2, (1,), 1, 0), (TypeError, SystemError)),
    "no room": ("create", lambda: (stage(), 2, (1,), 0, 0), ValueError),
    "less than no room": ("create", lambda: (stage(), 2, (1,), -1, 0), ValueError),
    "more than the memory": ("create", lambda: (stage(), 2, (1,), 2**56, 0), MemoryError),
    "more than an address": ("create", lambda: (stage(), 2, (1,), 2**62, 0), RuntimeError),
    "less than no values": ("create", lambda: (stage(), -1, (), 1, 0), ValueError),
    "a result that is not a value": ("create", lambda: (stage(), 2, (2,), 1, 0), ValueError),
    "a result that is not a number": ("create", lambda: (stage(), 2, ("1",), 1, 0), TypeError),
    "results that are not a sequence": ("create", lambda: (stage(), 2, 7, 1, 0), TypeError),
    "results that raise": ("create", lambda: (stage(), 2, Odd(), 1, 0), KeyError),
    "a result that raises": ("create", lambda: (stage(), 2, (Odd(),), 1, 0), KeyError),
    "a result beyond C": ("create", lambda: (stage(), 2, (2**70,), 1, 0), OverflowError),
    "an input that is not a value": ("create", lambda: (stage(inputs=(2,)), 2, (1,), 1, 0), ValueError),
    "an input that is not a weight": ("create", lambda: (stage(inputs=(-1,)), 2, (1,), 1, 0), ValueError),
    "an output that is not a value": ("create", lambda: (stage(outputs=(-1,)), 2, (1,), 1, 0), ValueError),
    "no order": ("create", lambda: (stage(orders=[]), 2, (1,), 1, 0), ValueError),
    "an order that leaves one out": ("create", lambda: (stage(orders=[(1, 1)]), 2, (1,), 1, 0), ValueError),
    "a dead value that is none": ("create", lambda: (stage(dead=(9,)), 2, (1,), 1, 0), ValueError),
    "a weight that is not a handle": ("create", lambda: (stage(weights=[7]), 2, (1,), 1, 0), ValueError),
    "a weight of another kind": ("create", lambda: (stage(weights=[new_pipe()]), 2, (1,), 1, 0), ValueError),
    "no thread": ("create", lambda: (stage(replicas=0), 2, (1,), 1, 0), ValueError),
    "no such file": ("create", lambda: (stage(path="/no/such/file.so"), 2, (1,), 1, 0), RuntimeError),
    "serve no pipe": ("serve", lambda: (X, 0, 0, CORES, print), ValueError),
    "serve no such stage": ("serve", lambda: (new_pipe(), 1, 0, CORES, print), ValueError),
    "serve a negative stage": ("serve", lambda: (new_pipe(), -1, 0, CORES, print), ValueError),
    "serve no such thread": ("serve", lambda: (new_pipe(), 0, 1, CORES, print), ValueError),
    "serve without code": ("serve", lambda: (new_pipe(), 0, 0, CORES, None), TypeError),
    "serve with what is not a function": ("serve", lambda: (new_pipe(), 0, 0, CORES, 7), TypeError),
    "cores that are none": ("serve", lambda: (new_pipe(), 0, 0, ("0",), print), TypeError),
    "a negative core": ("serve", lambda: (new_pipe(), 0, 0, (-1,), print), ValueError),
    "submit to no pipe": ("submit", lambda: (7, (), [], None), ValueError),
    "submit no such value": ("submit", lambda: (new_pipe(), (2,), to_handles([X]), None), ValueError),
    "submit a negative value": ("submit", lambda: (new_pipe(), (-1,), to_handles([X]), None), ValueError),
    "submit for no number": ("submit", lambda: (new_pipe(), ("0",), to_handles([X]), None), TypeError),
    "submit no handle": ("submit", lambda: (new_pipe(), (0,), [X], None), ValueError),
    "submit too few handles": ("submit", lambda: (new_pipe(), (0,), [], None), TypeError),
    "submit in other types": ("submit", lambda: (new_pipe(), [0], (X,), None), TypeError),
    "submit with too little": ("submit", lambda: (new_pipe(),), TypeError),
    "wait for room in no pipe": ("wait_free", lambda: ("pipe", 0), ValueError),
    "wait for ever and more": ("wait_free", lambda: (new_pipe(), 2**70), OverflowError),
    "wait for no request": ("wait", lambda: (new_pipe(), 0, 0), ValueError),
    "take from no request": ("take", lambda: (new_pipe(), new_pipe()), ValueError),
    "take from no pipe": ("take", lambda: (1, 2), ValueError),
    "take with too little": ("take", lambda: (), TypeError),
    "times of no request": ("times", lambda: (3,), ValueError),
    "run no such file": ("run", lambda: ("/no/such/file.so", to_handles([X]), 1), RuntimeError),
    "run with no handle": ("run", lambda: ("/no/such/file.so", [3], 1), ValueError),
    "run for less than nothing": ("run", lambda: ("/no/such/file.so", [], -1), ValueError),
    "run for more than the memory": ("run", lambda: ("/no/such/file.so", [], 2**58), (MemoryError, RuntimeError)),
    "stop no pipe": ("stop", lambda: (None,), ValueError),
}


@pytest.mark.parametrize("name", list(WRONG_CALLS))
def test_a_wrong_call_is_an_exception(name: str) -> None:
    entry, arguments, error = WRONG_CALLS[name]
    with pytest.raises(error):
        getattr(LOOP, entry)(*arguments())


def test_a_pending_request_is_of_its_pipe_and_is_taken_once_it_is_finished() -> None:
    pipe = new_pipe()
    pending = LOOP.submit(pipe, (0,), to_handles([X]), None)
    with pytest.raises(RuntimeError, match="not finished"):
        LOOP.take(pipe, pending)
    with pytest.raises(ValueError, match="another pipe"):
        LOOP.take(new_pipe(), pending)
    assert LOOP.wait(pending, 0, 0) is False


@pytest.mark.parametrize("pipe", [True, False], ids=["create", "submit"])
def test_after_an_error_the_caller_still_owns_the_tensors(pipe: bool) -> None:
    tensor = torch.ones(3)
    kept = StorageWeakRef(tensor.untyped_storage())
    handles = to_handles([tensor])
    with pytest.raises((ValueError, RuntimeError)):
        if pipe:
            LOOP.create(stage(weights=handles) + stage(path="/no/such/file.so"), 2, (1,), 1, 0)
        else:
            LOOP.submit(new_pipe(), (7,), handles, None)
    (again,) = tensors_of(handles)
    assert torch.equal(again, torch.ones(3)) and again.data_ptr() == tensor.data_ptr()
    del tensor, again, handles
    assert kept.expired()


def program() -> Program:
    captured = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), X)
    memory = analyze_memory(captured)
    plan = make_plan(captured, memory, Request.check("1GiB", ("cores:0",)))
    captured = planned_graph(captured, plan)
    return make_program(captured, cut(captured, plan), memory.written)


class Served:
    """A runtime of one stage, closed at the end."""

    def __init__(self, code: Code) -> None:
        self.runtime = LocalRuntime(program(), [code], [[CORES]], 2)

    def __enter__(self) -> LocalRuntime:
        return self.runtime

    def __exit__(self, *_: object) -> None:
        self.runtime.close()


def outcome(served: LocalRuntime) -> Any:
    pending = served.submit((0,), [X])
    for _ in range(400):  # a stage whose thread has ended would be waited for without end
        if served.loop.wait(pending._capsule, 0, 50_000_000):
            return pending.take()
    raise AssertionError("the request does not end")


THROWS = """
#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
static int calls = 0;
extern "C" int32_t AOTInductorModelContainerCreateWithDevice(void** made, size_t, const char*, const char*) {
  *made = &calls;
  return 0;
}
extern "C" int32_t AOTInductorModelContainerDelete(void*) { return 0; }
extern "C" int32_t AOTInductorModelContainerRunSingleThreaded(void*, void**, size_t, void**, size_t, void*, void*) {
  if (calls == 4) return 1;
  if (calls++ == 0) throw std::runtime_error("thrown by the stage");
  if (calls == 2) throw std::bad_alloc();
  if (calls == 3) throw 7;
  throw std::string("words");
}
"""


def test_what_a_stage_in_cpp_throws_is_its_request_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "throws.cpp"
    source.write_text(THROWS)
    path = str(compiled(source))
    with Served(Code(path)) as served:
        for error, words in [
            (RuntimeError, "thrown by the stage"),
            (MemoryError, "^$"),
            (RuntimeError, "not a std::exception"),
            (RuntimeError, "not a std::exception"),
            (StageError, "compiled code of stage 0 failed"),
        ]:
            with pytest.raises(error, match=words):
                outcome(served)
    with pytest.raises(RuntimeError, match="standard error"):
        LOOP.run(path, to_handles([X]), 1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda handles: None, TypeError),
        (lambda handles: [], TypeError),
        (lambda handles: tuple(handles), TypeError),
        (lambda handles: [7], ValueError),
        (lambda handles: [new_pipe()], ValueError),
        (lambda handles: 1 // 0, ZeroDivisionError),
    ],
    ids=["nothing", "too few", "no list", "no handle", "another capsule", "an exception"],
)
def test_what_a_stage_in_python_answers_is_looked_at(answer: Any, error: type[Exception]) -> None:
    def callback(handles: list[Any]) -> Any:
        tensors = tensors_of(handles)
        return answer(tensors) if answers else to_handles([torch.relu(tensors[0])])

    answers = [True]
    with Served(Code(None, callback)) as served:
        with pytest.raises(error):
            outcome(served)
        answers.clear()
        (result,) = outcome(served)
        assert torch.equal(result, X)


def test_an_exception_of_a_request_that_nobody_waits_for_goes() -> None:
    class Failed(RuntimeError):
        pass

    begun, go_on = threading.Event(), threading.Event()
    kept = []

    def callback(handles: list[Any]) -> Any:
        tensors_of(handles)
        begun.set()
        go_on.wait(timeout=30)
        error = Failed()
        kept.append(weakref.ref(error))
        raise error

    with Served(Code(None, callback)) as served:
        pending = served.submit((0,), [X])
        assert begun.wait(timeout=30)
        del pending
        go_on.set()
    gc.collect()
    assert len(kept) == 1 and kept[0]() is None


def test_a_system_without_further_threads_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []

    class Scarce(threading.Thread):
        def start(self) -> None:
            if started:
                raise RuntimeError("can't start new thread")
            started.append(self)
            super().start()

    monkeypatch.setattr(runtime.threading, "Thread", Scarce)
    with pytest.raises(RuntimeError, match="start new thread"):
        LocalRuntime(program(), [Code(None, to_handles)], [[CORES, CORES]], 2)
    assert len(started) == 1 and not started[0].is_alive()


@pytest.mark.parametrize("inflight", [10**9, 10**30, 65537, 2.5, "3", True, float("nan"), 0, -1])
def test_requests_in_flight_are_checked_before_anything_is_made(inflight: Any) -> None:
    for devices in (["cores:0"], None):
        with pytest.raises(PartitionError, match=r"inflight=.*default"):
            fx_partition.pipeline(nn.Linear(4, 4), X, devices=devices, inflight=inflight)
