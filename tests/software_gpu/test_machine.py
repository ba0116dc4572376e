"""The rules of the machine itself: what orders work and what does not, what captures forbid, how devices fail."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .machine import Machine

SEEDS = range(24)


def on(device: int, value: float = 0.0, size: int = 64) -> Tensor:
    """A tensor of a device that is complete."""
    tensor = torch.full((size,), value, device=f"cuda:{device}")
    torch.cuda.synchronize(device)
    return tensor


def seen(machine: Machine, run: Callable[[], float]) -> set[float]:
    """What a program makes under many schedules."""
    found = set()
    for seed in SEEDS:
        machine.seed(seed)
        found.add(run())
        for device in range(2):
            torch.cuda.synchronize(device)
    return found


# ---- what orders work


def test_a_stream_runs_its_work_in_order(machine: Machine) -> None:
    def run() -> float:
        x = on(0)
        with torch.cuda.stream(torch.cuda.Stream(0)):
            for _ in range(5):
                x.mul_(2.0).add_(1.0)
            return float(x[0])

    assert seen(machine, run) == {31.0}


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "does not wait"])
@pytest.mark.parametrize("devices", [(0, 0), (0, 1)], ids=["one device", "two devices"])
def test_two_streams_are_ordered_by_an_event_alone(machine: Machine, devices: tuple[int, int], waits: bool) -> None:
    def run() -> float:
        x, y = on(devices[0]), on(devices[1])
        first, second = map(torch.cuda.Stream, devices)
        with torch.cuda.stream(first):
            x.fill_(1.0)
            written = first.record_event()
        if waits:
            second.wait_event(written)
        with torch.cuda.device(devices[1]):
            copy(y, x, second)
        second.synchronize()
        return float(y.cpu()[0])

    assert seen(machine, run) == ({1.0} if waits else {0.0, 1.0})


def copy(target: Tensor, source: Tensor, stream: torch.cuda.Stream) -> None:
    """Copy as CUDA does, without the events that torch adds between two devices."""
    runtime = ctypes.CDLL(None)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (target, source)]
    size, handle = ctypes.c_size_t(source.nbytes), ctypes.c_void_p(stream.cuda_stream)
    assert runtime.cudaMemcpyAsync(*pointers, size, 4, handle) == 0


def test_a_wait_is_for_the_record_before_it(machine: Machine) -> None:
    def run() -> float:
        x, y = on(0), on(0)
        first, second, event = torch.cuda.Stream(0), torch.cuda.Stream(0), torch.cuda.Event()
        with torch.cuda.stream(first):
            x.fill_(1.0)
            event.record(first)
        second.wait_event(event)
        with torch.cuda.stream(first):
            later = first.record_event()
            event.record(first)
        with torch.cuda.stream(second):
            y.copy_(x)
        second.synchronize()
        assert later is not None
        return float(y[0])

    assert seen(machine, run) == {1.0}


def test_an_event_that_was_never_recorded_orders_nothing(machine: Machine) -> None:
    event = torch.cuda.Event()
    torch.cuda.current_stream(0).wait_event(event)
    assert event.query()
    torch.cuda.synchronize(0)


def test_memory_that_another_stream_still_reads_is_given_away_without_record_stream(machine: Machine) -> None:
    def run_with(recorded: bool) -> Callable[[], float]:
        def run() -> float:
            reader = torch.cuda.Stream(0)
            y = on(0, size=4096)
            x = torch.full((4096,), 1.0, device="cuda:0")
            reader.wait_stream(torch.cuda.current_stream(0))
            with torch.cuda.stream(reader):
                y.copy_(x)
            if recorded:
                x.record_stream(reader)
            del x
            torch.full((4096,), 2.0, device="cuda:0")  # in the same memory, if that is free
            torch.cuda.synchronize(0)
            return float(y[0])

        return run

    assert seen(machine, run_with(True)) == {1.0}
    assert seen(machine, run_with(False)) == {1.0, 2.0}


def test_memory_is_not_a_number_before_it_is_written(machine: Machine) -> None:
    pointer = ctypes.c_void_p()
    runtime = ctypes.CDLL(None)
    assert runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(4)) == 0
    assert pointer.value is not None
    assert ctypes.c_float.from_address(pointer.value).value != ctypes.c_float.from_address(pointer.value).value
    assert runtime.cudaFree(pointer) == 0


def test_the_same_seed_is_the_same_schedule(machine: Machine) -> None:
    streams = [torch.cuda.Stream(0) for _ in range(6)]

    def run() -> float:
        x = on(0)
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                x.mul_(3.0).add_(float(i))  # a race
        torch.cuda.synchronize(0)
        return float(x[0])

    results = []
    for _ in range(2):
        machine.seed(7)
        results.append([run() for _ in range(10)])
    assert results[0] == results[1]
    assert len(set(results[0])) > 1


# ---- copies from and to the host


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "pageable"])
def test_only_pinned_memory_of_the_host_is_copied_later(machine: Machine, pinned: bool) -> None:
    def to_device() -> float:
        x = torch.ones(64, pin_memory=pinned)
        y = x.to("cuda:0", non_blocking=True)
        x.fill_(2.0)
        return float(y.cpu()[0])

    def to_host() -> float:
        x, y = torch.full((64,), 1.0, device="cuda:0"), torch.zeros(64, pin_memory=pinned)
        y.copy_(x, non_blocking=True)
        return float(y[0])

    assert seen(machine, to_device) == ({1.0, 2.0} if pinned else {1.0})
    assert (0.0 in seen(machine, to_host)) == pinned


@pytest.mark.parametrize("devices", [("cuda:0", "cuda:1"), ("cuda:2", "cuda:0")], ids=str)
def test_torch_orders_its_own_copies_between_devices(machine: Machine, devices: tuple[str, str]) -> None:
    def run() -> float:
        return float(torch.full((64,), 1.0, device=devices[0]).add(1.0).to(devices[1]).mul(2.0).cpu()[0])

    assert seen(machine, run) == {4.0}


def test_copies_and_their_bytes_are_counted_by_kind(machine: Machine) -> None:
    x, pinned = on(0, 1.0), torch.zeros(64, pin_memory=True)
    with machine.counting(0) as zero, machine.counting(1) as one:
        y = x.to("cuda:1")
        y.clone()
        pinned.copy_(x, non_blocking=True)
        torch.cuda.synchronize(0)
    assert zero["copies_between_devices"] + one.get("copies_between_devices", 0) == 1
    assert zero["bytes_between_devices"] == 256
    assert (zero["copies_device_to_host"], zero["bytes_device_to_host"]) == (1, 256)
    assert (one["copies_within_device"], one["bytes_within_device"]) == (1, 256)
    assert "kernel_launches" not in zero


def test_launches_events_and_waits_are_counted(machine: Machine) -> None:
    x, stream = on(0), torch.cuda.Stream(0)
    with machine.counting(0) as counts:
        x.add_(1.0)
        x.mul_(2.0)
        stream.wait_event(torch.cuda.current_stream(0).record_event())
    assert counts == {"kernel_launches": 2, "event_records": 1, "event_waits": 1}


# ---- captures


def capture(function: Callable[[], object], stream: torch.cuda.Stream | None = None) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph


def test_captured_work_runs_when_the_graph_is_launched(machine: Machine) -> None:
    x = on(0, 1.0)
    with machine.counting(0) as counts:
        graph = capture(lambda: x.add_(1.0))
    assert counts["captured_operations"] == 1 and "kernel_launches" not in counts
    assert float(x.cpu()[0]) == 1.0
    with machine.counting(0) as counts:
        graph.replay()
        graph.replay()
    assert counts == {"graph_launches": 2}
    assert float(x.cpu()[0]) == 3.0


def fork(x: Tensor, y: Tensor, joins: bool, orders: bool = True) -> None:
    main, side = torch.cuda.current_stream(0), torch.cuda.Stream(0)
    x.fill_(1.0)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        y.copy_(x)
    if joins and orders:
        main.wait_stream(side)
    x.fill_(2.0)
    if joins and not orders:
        main.wait_stream(side)


@pytest.mark.parametrize("orders", [True, False], ids=["ordered", "not ordered"])
def test_events_in_a_capture_order_the_nodes_and_nothing_else_does(machine: Machine, orders: bool) -> None:
    x, y = on(0), on(0)
    graph = capture(lambda: fork(x, y, True, orders))

    def run() -> float:
        graph.replay()
        return float(y.cpu()[0])

    assert seen(machine, run) == ({1.0} if orders else {1.0, 2.0})


def test_launches_of_one_graph_do_not_overlap(machine: Machine) -> None:
    x = on(0)
    graph = capture(lambda: x.mul_(2.0).add_(1.0))

    def run() -> float:
        x.fill_(0.0)
        torch.cuda.synchronize(0)
        for _ in range(3):
            with torch.cuda.stream(torch.cuda.Stream(0)):
                graph.replay()
        torch.cuda.synchronize(0)
        return float(x[0])

    assert seen(machine, run) == {7.0}


def waits_for_other_work(x: Tensor) -> None:
    torch.cuda.current_stream(0).wait_event(UNCAPTURED[0])


UNCAPTURED: list[torch.cuda.Event] = []

FORBIDDEN: dict[str, Callable[[Tensor], object]] = {
    "a wait of the host": lambda x: torch.cuda.current_stream(0).synchronize(),
    "a wait for the device": lambda x: torch.cuda.synchronize(0),
    "a value on the host": lambda x: float(x[0]),
    "pageable memory": lambda x: x.copy_(torch.zeros(64), non_blocking=True),
    "an event of other work": waits_for_other_work,
    "work that is not joined": lambda x: fork(x, x.clone(), False),
}


@pytest.mark.parametrize("call", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_a_capture_forbids_fails_and_leaves_the_machine_working(
    machine: Machine, call: Callable[[Tensor], object]
) -> None:
    x = on(0)
    with torch.cuda.stream(torch.cuda.Stream(0)):
        x.add_(0.0)
        UNCAPTURED[:] = [torch.cuda.current_stream(0).record_event()]
    with pytest.raises(RuntimeError, match=r"(?i)captur"):
        capture(lambda: call(x))
    torch.cuda.synchronize(0)
    graph = capture(lambda: x.add_(1.0))
    graph.replay()
    assert float(x.cpu()[0]) == 1.0


def test_a_capture_may_go_over_two_devices(machine: Machine) -> None:
    x, y = on(0, 1.0), on(1)

    def both() -> None:
        main, side = torch.cuda.current_stream(0), torch.cuda.Stream(1)
        x.mul_(2.0)
        side.wait_event(main.record_event())
        copy(y, x, side)
        with torch.cuda.stream(side):
            y.add_(1.0)
            back = side.record_event()
        main.wait_event(back)

    with torch.cuda.device(0):
        graph = capture(both)

    def run() -> float:
        x.fill_(1.0)
        graph.replay()
        torch.cuda.synchronize(0)
        return float(y.cpu()[0])

    assert seen(machine, run) == {3.0}


# ---- misuse and failures


def test_a_launch_on_a_stream_of_another_device_fails(machine: Machine) -> None:
    stream = torch.cuda.Stream(1)
    with torch.cuda.device(0):
        assert machine.launch(stream.cuda_stream, "kernel") == 400  # cudaErrorInvalidResourceHandle


def test_an_event_is_recorded_on_its_own_device_only(machine: Machine) -> None:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(0))
    with pytest.raises(RuntimeError):
        event.record(torch.cuda.current_stream(1))


def test_a_kernel_without_an_implementation_is_an_error_that_names_it(machine: Machine) -> None:
    x = on(0)
    with pytest.raises(RuntimeError, match=r"the software GPU has no kernel .*floor"):
        torch.floor(x)
    x.add_(1.0)  # the device works on
    assert float(x.cpu()[0]) == 1.0


def test_memory_ends_at_the_size_that_was_set(machine: Machine) -> None:
    torch.cuda.empty_cache()
    used = machine.counts(1)["allocated_bytes"]
    machine.set_memory(1, used + (64 << 20))
    held = torch.empty(48 << 20, dtype=torch.uint8, device="cuda:1")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(32 << 20, dtype=torch.uint8, device="cuda:1")
    torch.empty(32 << 20, dtype=torch.uint8, device="cuda:0")
    assert torch.cuda.mem_get_info(1) == (16 << 20, used + (64 << 20))
    del held
    torch.empty(32 << 20, dtype=torch.uint8, device="cuda:1")


def test_allocated_bytes_and_their_peak_are_those_of_the_device(machine: Machine) -> None:
    torch.cuda.empty_cache()
    machine.reset_peak(2)
    before = machine.counts(2)["allocated_bytes"]
    with machine.counting(2) as counts:
        x = torch.empty(40 << 20, dtype=torch.uint8, device="cuda:2")
        del x
        torch.cuda.empty_cache()
    assert (counts["allocations"], counts["frees"]) == (1, 1) and "allocated_bytes" not in counts
    assert machine.counts(2)["peak_allocated_bytes"] == before + (40 << 20)


def test_the_device_fails_at_the_kernel_that_was_named_and_then_for_good(machine: Machine) -> None:
    x, y = on(0), on(1)
    machine.fail_kernel(0, 3)
    for _ in range(5):
        x.add_(1.0)
    with pytest.raises(RuntimeError, match=r"unspecified launch failure in .*vectorized_elementwise"):
        torch.cuda.synchronize(0)
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        x.add_(1.0)
    y.add_(1.0)
    assert float(y.cpu()[0]) == 1.0  # the other device works
    machine.repair(0)
    assert float(x.cpu()[0]) == 2.0  # what came before


def test_a_kernel_in_a_graph_fails_in_the_launch_that_was_named(machine: Machine) -> None:
    x = on(0)
    graph = capture(lambda: x.add_(1.0).add_(1.0))
    machine.fail_kernel(0, 4)  # the second of the second launch
    graph.replay()
    torch.cuda.synchronize(0)
    graph.replay()
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        torch.cuda.synchronize(0)
    machine.repair(0)
    assert float(x.cpu()[0]) == 3.0


def test_a_device_that_is_held_does_nothing_until_it_is_released(machine: Machine) -> None:
    x = on(0)
    with machine.held(0):
        x.add_(1.0)
        event = torch.cuda.current_stream(0).record_event()
        assert not any(event.query() for _ in range(100))
    while not event.query():
        pass
    assert float(x.cpu()[0]) == 1.0


# ---- L2


def test_kernels_on_a_stream_with_a_window_are_counted(machine: Machine) -> None:
    from fx_partition.backends.cuda.l2_persistence import NO_WINDOW, AccessPolicyWindow, bindings

    calls = bindings(torch.device("cuda:0"))
    assert calls is not None
    x, stream = on(0), torch.cuda.Stream(0)
    calls.set_window(stream, AccessPolicyWindow(x.data_ptr(), x.nbytes, 1.0))
    with torch.cuda.stream(stream), machine.counting(0) as counts:
        x.add_(1.0)
    calls.set_window(stream, NO_WINDOW)
    assert counts == {"kernel_launches": 1, "kernels_in_window": 1}
    assert calls.most_set_aside() == 37 << 20
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        calls.set_window(stream, AccessPolicyWindow(x.data_ptr(), calls.largest_window() + 1, 1.0))


def test_a_number_of_devices_that_is_none_is_refused_by_name() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import torch; torch.cuda.device_count()"],
        env={**os.environ, "SWGPU_DEVICES": "many"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2 and "SWGPU_DEVICES=many is not a number" in found.stderr
