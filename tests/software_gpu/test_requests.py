"""`fx_partition.pipeline` with many requests in flight, its memory, and what becomes of a device that fails."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import fx_partition
from fx_partition.common.errors import PartitionWarning

from .machine import Machine
from .models import Chain, Placed, rows, run_stages_eagerly

PLACES = {
    "one": ["cuda:0"],
    "twice": ["cuda:0", "cuda:0"],
    "two": ["cuda:0", "cuda:1"],
    "wrapped": ["cuda:0", "cuda:1", "cuda:0", "cuda:1"],
    "four": ["cuda:0", "cuda:1", "cuda:2", "cuda:3"],
}


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> Placed:
    return run_stages_eagerly(monkeypatch)


def check(results: Sequence[Tensor], requests: Sequence[Tensor], model: Chain) -> None:
    model = Chain(len(model.layers))  # of the same seed, on the CPU
    with torch.no_grad():
        wrong = [
            number
            for number, (result, request) in enumerate(zip(results, requests, strict=True))
            if not torch.allclose(result.cpu(), model(request.cpu()), rtol=1e-4, atol=1e-4)
        ]
    assert wrong == []


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("home", ["cpu", "cuda:0", "cuda:1"])
@pytest.mark.parametrize("devices", PLACES.values(), ids=PLACES)
def test_forty_requests_in_flight(machine: Machine, devices: list[str], home: str, graphs: bool) -> None:
    model = Chain(len(devices) if len(devices) > 1 else 2).to(home)
    requests = [rows(8).to(home) for _ in range(40)]
    torch.cuda.synchronize()
    with torch.no_grad(), fx_partition.pipeline(
        model, (requests[0],), devices=devices, cuda_graphs=graphs, l2_persistence=False
    ) as pipe:
        for seed in range(3):
            machine.seed(seed)
            futures = [pipe.submit(request) for request in requests]
            results = [future.result() for future in futures]
            assert all(result.device == requests[0].device for result in results)
            check(results, requests, model)
        machine.seed(3)
        check(list(pipe.map(requests)), requests, model)


def test_stages_keep_their_weights_in_l2_while_the_pipeline_is_open(machine: Machine) -> None:
    model, x = Chain(2).to("cuda:0"), rows(8).to("cuda:0")
    with torch.no_grad(), fx_partition.pipeline(model, (x,), devices=["cuda:0", "cuda:1"], cuda_graphs=False) as pipe:
        for device in range(2):
            with machine.counting(device) as counts:
                pipe(x)
            assert counts["kernels_in_window"] == counts["kernel_launches"] > 0
    with machine.counting(0) as counts:
        model(x)
    assert "kernels_in_window" not in counts


def test_a_graph_keeps_the_window_of_its_capture(machine: Machine) -> None:
    model, x = Chain(2).to("cuda:0"), rows(8).to("cuda:0")
    with machine.counting(1) as counts, torch.no_grad():
        fx_partition.pipeline(model, (x,), devices=["cuda:0", "cuda:1"]).close()
    assert counts["kernels_in_window"] > counts["kernel_launches"] > 0  # warming up, and captured


@pytest.mark.parametrize("stages", [2, 4])
def test_calls_of_a_request_of_captured_stages(machine: Machine, stages: int) -> None:
    """What a request costs the host is the same for any number of stages."""
    devices = ["cuda:0", "cuda:1"]
    model, x = Chain(stages).to("cuda:0"), rows(8).to("cuda:0")
    placed = [devices[i % 2] for i in range(stages)]
    with torch.no_grad(), fx_partition.pipeline(model, (x,), devices=placed, l2_persistence=False) as pipe:
        for _ in range(4):
            pipe(x)
        with machine.counting(0) as zero, machine.counting(1) as one:
            pipe(x)
    calls = {"graph_launches": 1, "event_records": 2, "event_waits": 1, "copies_within_device": 2}
    assert {name: count for name, count in zero.items() if name in calls} == calls
    assert not one.keys() & {*calls, "kernel_launches"} and "kernel_launches" not in zero


def test_each_weight_is_once_on_the_device_of_its_stage(machine: Machine) -> None:
    torch.cuda.empty_cache()
    width, stages = 512, 4
    size = width * width * 4
    model = Chain(stages, width)
    before = [torch.cuda.memory_allocated(device) for device in range(4)]
    with torch.no_grad(), fx_partition.pipeline(
        model, (rows(2, width),), devices=PLACES["four"], l2_persistence=False, cuda_graphs=False
    ) as pipe:
        pipe(rows(2, width))
        used = [torch.cuda.memory_allocated(device) - before[device] for device in range(4)]
    assert all(size <= found < size * 1.2 for found in used), used  # and what cuBLAS works in


def test_a_model_that_no_device_can_hold_is_placed_from_the_cpu(machine: Machine) -> None:
    torch.cuda.empty_cache()
    width, stages = 2048, 4  # 16 MiB a layer
    for device in range(4):
        machine.set_memory(device, machine.counts(device)["allocated_bytes"] + (40 << 20))
    model, x = Chain(stages, width), rows(1, width)
    with torch.no_grad(), fx_partition.pipeline(
        model, (x,), devices=PLACES["four"], l2_persistence=False, cuda_graphs=False
    ) as pipe:
        torch.testing.assert_close(pipe(x), model(x), rtol=1e-3, atol=1e-3)


def test_a_stage_that_does_not_fit_its_device_says_so(machine: Machine) -> None:
    torch.cuda.empty_cache()
    machine.set_memory(1, machine.counts(1)["allocated_bytes"] + (8 << 20))
    with pytest.raises(torch.OutOfMemoryError), warnings.catch_warnings():
        warnings.simplefilter("ignore", PartitionWarning)
        fx_partition.pipeline(Chain(2, 2048), (rows(1, 2048),), devices=["cuda:0", "cuda:1"], l2_persistence=False)


# ---- failures


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("device", [0, 1])
def test_a_launch_that_fails_in_request_3_of_10_is_raised_to_its_caller(
    machine: Machine, graphs: bool, device: int
) -> None:
    model = Chain(2).to("cuda:0")
    requests = [rows(8).to("cuda:0") for _ in range(10)]
    with torch.no_grad(), fx_partition.pipeline(
        model, (requests[0],), devices=["cuda:0", "cuda:1"], cuda_graphs=graphs, l2_persistence=False
    ) as pipe:
        for _ in range(4):
            pipe(requests[0])
        futures = []
        for number, request in enumerate(requests):
            if number == 2:
                machine.refuse_kernel(device, 2)
            futures.append(pipe.submit(request))
        with pytest.raises(RuntimeError, match="too many resources requested for launch of "):
            futures[2].result()
        del futures[2], requests[2]
        check([future.result() for future in futures], requests, model)


# The process ends without freeing tensors: torch records an event when a tensor is freed that a second stream used, and
# what a failed device answers is an exception in a destructor.
DEVICE_FAILS = """
import os, sys, torch, fx_partition, pytest
from software_gpu.machine import Machine
from software_gpu.models import Chain, rows, run_stages_eagerly

run_stages_eagerly(pytest.MonkeyPatch())
machine, model = Machine(), Chain(2).to("cuda:0")
requests = [rows(8).to("cuda:0") for _ in range(10)]
found, kept = [], []
with torch.no_grad():
    pipe = fx_partition.pipeline(
        model, (requests[0],), devices=["cuda:0", "cuda:1"], cuda_graphs=bool(GRAPHS), l2_persistence=False, inflight=16
    )
    for _ in range(4):
        kept.append(pipe(requests[0]))
    first = [pipe.submit(request) for request in requests[:2]]
    right = [torch.allclose(f.result().cpu(), model(r).cpu(), atol=1e-4) for f, r in zip(first, requests)]
    machine.fail_kernel(1, 2)

    def submit(request):
        try:
            return pipe.submit(request)
        except RuntimeError as error:  # the device is known to have failed
            return error

    for future in [submit(request) for request in requests[2:]]:
        error = future if isinstance(future, RuntimeError) else future.exception()
        found.append("unspecified launch failure in void at::native" in str(error))
        kept.append(error)
    try:
        pipe.close()
    except RuntimeError as error:
        kept.append(error)
        print(right, found, "closed:", "unspecified launch failure" in str(error))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_a_device_that_fails_in_request_3_of_10_is_raised_to_it_and_all_that_follow(graphs: bool) -> None:
    """None of them hangs, none returns a value, and the results before are right."""
    done = subprocess.run(
        [sys.executable, "-c", DEVICE_FAILS.replace("GRAPHS", str(int(graphs)))],
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.stdout.strip() == f"{[True] * 2} {[True] * 8} closed: True", done.stdout + done.stderr[-2000:]


def test_a_request_that_is_not_finished_in_time_says_so_and_goes_on(machine: Machine) -> None:
    model, x = Chain(2).to("cuda:0"), rows(8).to("cuda:0")
    with torch.no_grad(), fx_partition.pipeline(
        model, (x,), devices=["cuda:0", "cuda:1"], l2_persistence=False
    ) as pipe:
        for _ in range(4):
            pipe(x)
        with machine.held(1):
            with pytest.raises(TimeoutError):
                pipe(x, timeout=0.2)
            future = pipe.submit(x)
        check([future.result()], [x], model)
