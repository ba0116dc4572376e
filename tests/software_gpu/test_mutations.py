"""Every synchronisation is needed: taken out, some request is wrong; and the machine sees it.

Each mutation replaces one method of the runtime by one that leaves out a wait. A scenario is a program that needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fx_partition
from fx_partition.backends.cuda.copy_stream import CopyLink, DeviceValue
from fx_partition.backends.cuda.enqueued_request import EnqueuedRequest
from fx_partition.backends.cuda.request_graph import RequestSlot
from fx_partition.backends.cuda.stage_weights import StageWeights
from fx_partition.backends.cuda.stream_pipeline import CudaPipeline
from fx_partition.backends.cuda.streamed_stage import StreamedStage, bring
from fx_partition.backends.devices.cuda_driver import Driver
from fx_partition.backends.inline import runtime as inline
from fx_partition.backends.weights import device_copies

from .machine import Machine
from .models import Chain, compiled, rows, run_stages_eagerly

SEEDS = 12
Patch = pytest.MonkeyPatch


# ---- scenarios: each returns how many results are wrong


def count_wrong(results: list[Tensor], requests: list[Tensor], model: Chain) -> int:
    plain = Chain(len(model.layers))
    plain.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
    return sum(
        not torch.allclose(result.cpu(), plain(request), rtol=1e-4, atol=1e-4)
        for result, request in zip(results, requests, strict=True)
    )


def streamed(machine: Machine, home: str, *, graphs: bool = False, stages: int = 2) -> int:
    """Requests in flight through a pipeline."""
    model, wrong = Chain(stages).to(home), 0
    pinned = [rows(8) for _ in range(8)]
    devices = [f"cuda:{i % 2}" for i in range(stages)]
    with fx_partition.pipeline(
        model, (pinned[0].to(home),), devices=devices, cuda_graphs=graphs, l2_persistence=False
    ) as pipe:
        for seed in range(SEEDS):
            machine.seed(seed)
            requests = [request.to(home) for request in pinned]
            torch.cuda.synchronize()
            pending = [pipe.submit(request) for request in requests]
            del requests
            wrong += count_wrong([request.result() for request in pending], pinned, model)
            for device in range(2):
                torch.cuda.synchronize(device)
    return wrong


def not_synchronised(machine: Machine) -> int:
    """The caller's own work, still enqueued, makes the inputs and reads the results."""
    model, wrong = Chain(2).to("cuda:0"), 0
    plain = [rows(8) for _ in range(6)]
    with fx_partition.pipeline(
        model, (plain[0].to("cuda:0"),), devices=["cuda:0", "cuda:1"], cuda_graphs=False, l2_persistence=False
    ) as pipe:
        for seed in range(SEEDS):
            machine.seed(seed)
            pinned = [request.pin_memory() for request in plain]
            pending = [pipe.submit(request.to("cuda:0", non_blocking=True)) for request in pinned]
            wrong += count_wrong([request.result() for request in pending], plain, model)
            torch.cuda.synchronize()
    return wrong


class FromHost(Chain):
    """Its input is on the CPU, so that no event of an input comes after the caller's work on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to("cuda:0"))


def weights_written(machine: Machine, *, packed: bool) -> int:
    """The caller writes the weights between two requests."""
    model, wrong = FromHost(2).to("cuda:0"), 0
    x = rows(8)
    with fx_partition.pipeline(
        model, (x,), devices=["cuda:0", "cuda:0"], cuda_graphs=False, l2_persistence=packed
    ) as pipe:
        for seed in range(SEEDS):
            machine.seed(seed)
            for weight in model.parameters():
                weight.mul_(-1.0)
            future = pipe.submit(x)
            wrong += count_wrong([future.result()], [x], model)
    return wrong


def called(machine: Machine, devices: list[str]) -> int:
    """Plain calls of a compiled model on the CPU, whose result is read at once."""
    model, wrong = Chain(2), 0
    run = compiled(model, devices)
    for seed in range(SEEDS):
        machine.seed(seed)
        x = rows(8)
        wrong += not torch.allclose(run(x), model(x), rtol=1e-4, atol=1e-4)
    return wrong


def called_on_other_streams(machine: Machine) -> int:
    """The weights change, and the next call is on another stream than the one that copied them."""
    model, wrong = Chain(2).to("cuda:0"), 0
    x = rows(8).to("cuda:0")
    run = compiled(model, ["cuda:0", "cuda:1"])
    run(x)
    for seed in range(SEEDS):
        machine.seed(seed)
        list(model.parameters())[1].mul_(-1.0)
        right = model(x).cpu()
        run(x)
        with torch.cuda.stream(torch.cuda.Stream(0)), torch.cuda.stream(torch.cuda.Stream(1)):
            result = run(x).cpu()
        wrong += not torch.allclose(result, right, rtol=1e-4, atol=1e-4)
    return wrong


# ---- mutations


def stages_do_not_wait(patch: Patch) -> None:
    def value(self: Any, request: Any, number: int, waited: set[int]) -> Any:
        if not isinstance(request.table[number], dict):
            return request.table[number]
        here = bring(request.table[number], self.device, self._links, self._driver)
        self._driver.used_on(here.tensor, self.stream)
        return here.tensor

    patch.setattr(StreamedStage, "_value", value)


def links_do_not_wait(patch: Patch) -> None:
    real = CopyLink.send
    patch.setattr(CopyLink, "send", lambda self, v: real(self, DeviceValue(v.tensor, v.stream, None)))


def memory_is_given_away(patch: Patch) -> None:
    patch.setattr(Driver, "used_on", lambda self, tensor, stream: None)


def requests_do_not_wait(patch: Patch) -> None:
    patch.setattr(EnqueuedRequest, "wait", lambda self, until=0.0: True)


def results_are_not_copied(patch: Patch) -> None:
    real = RequestSlot._copy_results

    def copy_results(self: Any, captured: Any, results: list[Any]) -> Any:
        events = real(self, captured, results)
        results[:] = captured.results  # which the slot's next request writes
        return events

    patch.setattr(RequestSlot, "_copy_results", copy_results)


def writes_of_weights_are_not_waited_for(patch: Patch) -> None:
    patch.setattr(StageWeights, "follow", lambda self: None)


def weights_are_copied_too_early(patch: Patch) -> None:
    def follow(self: Any) -> None:
        with self._driver.on(self._stream):
            self.pack.refresh()

    patch.setattr(StageWeights, "follow", follow)


def weights_are_not_complete(patch: Patch) -> None:
    patch.setattr(device_copies._Copy, "_wait", lambda self: None)


def the_host_does_not_wait(patch: Patch) -> None:
    real = inline._Mover._copy_of

    def copy_of(self: Any, source: Any, device: torch.device) -> Any:
        node = real(self, source, device)
        if node.op == "call_method":
            node.kwargs = {"copy": True, "non_blocking": True}
        return node

    patch.setattr(inline._Mover, "_copy_of", copy_of)


def results_are_not_waited_for(patch: Patch) -> None:
    real = CudaPipeline._leave

    def leave(self: Any, request: Any, number: int, home: torch.device) -> Any:
        events = list(request.events)
        result = real(self, request, number, home)
        request.events[:] = events
        return result

    patch.setattr(CudaPipeline, "_leave", leave)


CASES: dict[str, tuple[Callable[[Patch], None], Callable[[Machine], int]]] = {
    "a stage waits for its inputs": (stages_do_not_wait, lambda m: streamed(m, "cuda:0")),
    "a stage waits for inputs from the host": (stages_do_not_wait, lambda m: streamed(m, "cpu")),
    "a link waits for what it copies": (links_do_not_wait, lambda m: streamed(m, "cuda:0")),
    "a link waits for the caller's stream": (links_do_not_wait, not_synchronised),
    "memory that streams use is kept": (memory_is_given_away, lambda m: streamed(m, "cuda:0", stages=4)),
    "a result waits for its request": (requests_do_not_wait, lambda m: streamed(m, "cpu")),
    "a result waits for its copy to the host": (results_are_not_waited_for, lambda m: streamed(m, "cpu")),
    "results of a graph are copied": (results_are_not_copied, lambda m: streamed(m, "cuda:0", graphs=True)),
    "stages wait for writes of weights": (
        writes_of_weights_are_not_waited_for, lambda m: weights_written(m, packed=False)
    ),
    "packs wait for writes of weights": (weights_are_copied_too_early, lambda m: weights_written(m, packed=True)),
    "copies of weights are complete": (weights_are_not_complete, called_on_other_streams),
    "a call waits for its copies to the host": (the_host_does_not_wait, lambda m: called(m, ["cuda:0", "cuda:1"])),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_synchronisation_is_needed_and_enough(
    machine: Machine, monkeypatch: Patch, case: tuple[Callable[[Patch], None], Callable[[Machine], int]]
) -> None:
    mutate, wrong_results = case
    run_stages_eagerly(monkeypatch)
    with torch.no_grad():
        assert wrong_results(machine) == 0
        torch._dynamo.reset()
        mutate(monkeypatch)
        assert wrong_results(machine) > 0
