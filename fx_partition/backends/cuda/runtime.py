"""A program on GPUs: each stage compiled for its device, behind the interface that `pipeline.Pipeline` drives."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fx_partition.passes.capture.capture_model import value_of
from fx_partition.passes.capture.fake_tensors import FakeTensor

from ..devices.cuda_driver import DRIVER, Driver
from ..devices.home_device import place
from ..lowering.dedup_compile import compile_each_once
from ..lowering.graph_edits import retarget
from ..lowering.layout_guard import Layout, LayoutGuard
from ..lowering.stage_key import stage_key
from ..lowering.torch_internals import compile_part
from ..streaming.program import Program, Step
from .stage_step import CudaStep
from .stream_pipeline import CudaPipeline, EnqueuedRequest


class CudaRuntime:
    """Runs a program's stages on GPUs.

    Args:
        program: the stages.
        devices: the device of each.
        home: the device of the model.
        inflight: how many requests may be in flight.
        patches: inductor options.
        graphs, persist: see `stream_pipeline.CudaPipeline`.
    """

    def __init__(
        self,
        program: Program,
        devices: Sequence[torch.device],
        home: torch.device,
        inflight: int,
        patches: Mapping[str, Any],
        *,
        graphs: bool,
        persist: bool,
        driver: Driver = DRIVER,
    ) -> None:
        functions = [
            LayoutGuard(function, step.index, _named(step), step.takes, step.makes)
            for function, step in zip(compile_for(program.steps, devices, home, patches), program.steps, strict=True)
        ]
        steps = [
            _cuda_step(step, device, function, home, driver)
            for step, device, function in zip(program.steps, devices, functions, strict=True)
        ]
        results = [result for result in program.results if isinstance(result, int)]
        homes = {
            number: value.device
            for step in program.steps
            for number, value in zip((*step.inputs, *step.outputs), (*step.takes, *step.makes), strict=True)
            if isinstance(number, int) and isinstance(value, torch.Tensor)
        }
        self._pipeline = CudaPipeline(
            steps, program.num_values, results, inflight, graphs=graphs, persist=persist, homes=homes, driver=driver
        )
        self._lock = threading.Lock()

    def submit(self, numbers: tuple[int, ...], tensors: list[torch.Tensor], until: float = math.inf) -> EnqueuedRequest:
        """Start a request; waits while as many are in flight as may be.

        Args:
            numbers, tensors: values of the request's table.
            until: when to give up, by ``time.monotonic``.

        Raises:
            RuntimeError: the runtime is closed; nothing was started.
            TimeoutError: the time is over; nothing was started.
        """
        left = -1 if until == math.inf else min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=left):
            raise TimeoutError("another thread's request waits, and the time given is over")
        try:
            return self._pipeline.submit(list(zip(numbers, tensors, strict=True)), until)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Wait for what is in flight and free what the devices hold; a second call does nothing."""
        with self._lock:
            self._pipeline.close()


def _cuda_step(
    step: Step, device: torch.device, function: Callable[..., Sequence[Any]], home: torch.device, driver: Driver
) -> CudaStep:
    def hosted(values: Iterable[Any]) -> frozenset[int]:
        """Positions of what stays on the CPU, as the model has it there on purpose."""
        tensors = [(i, value) for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
        return frozenset(i for i, value in tensors if driver.is_host(place(value.device, home, device)))

    # A CUDA graph would keep what was computed on the host when it was captured.
    inside = map(value_of, step.module.graph.nodes)
    static = step.is_static and not step.writes and not hosted(leaf for v in inside for leaf in pytree.tree_leaves(v))
    return CudaStep(
        device, function, step.inputs, step.outputs, step.dead, static, hosted(step.takes), hosted(step.makes)
    )


def _named(step: Step) -> list[tuple[str, Layout | None]]:
    return [(f"result {place}", layout) for place, layout in enumerate(step.layouts)]


def compile_for(
    steps: Sequence[Step], devices: Sequence[torch.device], home: torch.device, patches: Mapping[str, Any]
) -> list[Callable[..., Sequence[Any]]]:
    """The code of each stage on its device; stages that are alike, on devices of one kind and index, share it."""
    keys = [
        (device, stage_key(step.module, step.takes, step.makes)) for step, device in zip(steps, devices, strict=True)
    ]

    def compile_stage(index: int) -> Callable[..., Sequence[Any]]:
        module = copy.deepcopy(steps[index].module)
        retarget(module, home, devices[index])
        _move_leaves(module, home, devices[index])
        takes = [_on(value, home, devices[index]) for value in steps[index].takes]
        with torch.no_grad():
            return compile_part(module, takes, patches)

    return compile_each_once(keys, compile_stage, "pipeline")


def _move_leaves(module: torch.fx.GraphModule, home: torch.device, device: torch.device) -> None:
    """Leaf modules have their weights with them, which no stage takes as inputs."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            moved = parameter.detach().to(place(parameter.device, home, device))
            setattr(part, name, torch.nn.Parameter(moved, requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffer.to(place(buffer.device, home, device)))


def _on(value: Any, home: torch.device, device: torch.device) -> Any:
    """A stage's fake input where the stage takes it."""
    if not isinstance(value, FakeTensor) or (here := place(value.device, home, device)) == value.device:
        return value
    with value.fake_mode, torch.no_grad():
        return value.to(here)
