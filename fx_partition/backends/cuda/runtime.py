"""Run a program on GPUs, with each stage compiled for its device: the runtime of `streaming.pipeline.Pipeline`."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.capture.fake_tensors import FakeTensor

from ..devices.cuda_driver import DRIVER, Driver
from ..devices.home_device import place
from ..lowering.dedup_compile import compile_deduplicated
from ..lowering.graph_edits import retarget
from ..lowering.layout_guard import Layout, LayoutGuard
from ..lowering.stage_key import stage_key
from ..lowering.torch_internals import compile_part
from ..streaming.program import Constant, Program, ProgramStep
from ..weights.lazy_weights import materialize
from ..weights.moved_weights import Moves
from .enqueued_request import EnqueuedRequest
from .stage_step import CudaStep
from .stream_pipeline import CudaPipeline


def own_graphs_only(patches: Mapping[str, Any]) -> dict[str, Any]:
    """Return inductor's options with its own CUDA graphs off, also where the process has them on.

    They would record a stage on a stream of theirs, copy its inputs a second time, and give its results memory that the
    next call writes while a link still reads it.

    Raises:
        PartitionError: an option asks for them.
    """
    if patches.get("triton.cudagraphs"):
        raise PartitionError(
            'inductor={"triton.cudagraphs": True} records CUDA graphs inside the stages, and a pipeline records its '
            "own (cuda_graphs=True, the default); leave the option out"
        )
    return {**patches, "triton.cudagraphs": False}


class CudaRuntime:
    """Runs a program's stages on GPUs.

    Args:
        program: the stages.
        devices: the device of each stage.
        home: the device of the model.
        inflight: how many requests may be in flight.
        patches: options of inductor.
        graphs, persist: see `stream_pipeline.CudaPipeline`.
        examples: the numbers and tensors of requests with which the stages are warmed up.
        move: the parameters and buffers of the model by all their names, where they are to become the stages' copies.
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
        examples: Sequence[tuple[tuple[int, ...], list[torch.Tensor]]] = (),
        move: Mapping[str, torch.Tensor] | None = None,
        driver: Driver = DRIVER,
    ) -> None:
        functions = [
            LayoutGuard(function, step.index, _named(step), step.fake_inputs, step.fake_outputs)
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
            for numbers, values in ((step.inputs, step.fake_inputs), (step.outputs, step.fake_outputs))
            for number, value in zip(numbers, values, strict=True)
            if isinstance(number, int) and isinstance(value, torch.Tensor)
        }
        constants = [result.value for result in program.results if isinstance(result, Constant)]
        returned = [value for value in constants if isinstance(value, torch.Tensor)]
        materialize(returned)
        self._pipeline = CudaPipeline(
            steps,
            program.num_values,
            results,
            inflight,
            graphs=graphs,
            persist=persist,
            examples=[list(zip(numbers, tensors, strict=True)) for numbers, tensors in examples],
            moves=None if move is None else Moves(move, returned),
            homes=homes,
            driver=driver,
        )
        self._lock = threading.Lock()

    def submit(self, numbers: tuple[int, ...], tensors: list[torch.Tensor], until: float = math.inf) -> EnqueuedRequest:
        """Start a request; wait first while the limit of requests in flight is reached.

        Args:
            numbers, tensors: the numbers and tensors of the request's first values.
            until: when to give up, by ``time.monotonic``.

        Raises:
            RuntimeError: the runtime is closed; nothing was started.
            TimeoutError: the time is over; nothing was started.
        """
        left = -1 if until == math.inf else min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=left):
            raise TimeoutError("another thread's request is still waiting to start, and timeout= is over")
        try:
            return self._pipeline.submit(list(zip(numbers, tensors, strict=True)), until)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Wait for the requests in flight and free the memory of the devices; a second call does nothing."""
        with self._lock:
            self._pipeline.close()


def _cuda_step(
    step: ProgramStep, device: torch.device, function: Callable[..., Sequence[Any]], home: torch.device, driver: Driver
) -> CudaStep:
    def hosted(values: Iterable[Any]) -> frozenset[int]:
        """Return the positions of values that stay on the CPU, as the model put them there on purpose."""
        tensors = [(i, value) for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
        return frozenset(i for i, value in tensors if driver.is_host(place(value.device, home, device)))

    inside = map(value_of, step.module.graph.nodes)
    on_host = bool(hosted(leaf for value in inside for leaf in pytree.tree_leaves(value)))
    return CudaStep(
        device,
        function,
        step.inputs,
        step.outputs,
        step.dead,
        step.is_static and not step.written and not on_host,
        hosted(step.fake_inputs),
        hosted(step.fake_outputs),
        on_host,
    )


def _named(step: ProgramStep) -> list[tuple[str, Layout | None]]:
    return [(f"result {position}", layout) for position, layout in enumerate(step.layouts)]


def compile_for(
    steps: Sequence[ProgramStep], devices: Sequence[torch.device], home: torch.device, patches: Mapping[str, Any]
) -> list[Callable[..., Sequence[Any]]]:
    """Return the code of each stage on its device; equal stages on one device share their code."""
    keys = [
        (device, stage_key(step.module, step.fake_inputs, step.fake_outputs))
        for step, device in zip(steps, devices, strict=True)
    ]

    def compile_stage(index: int) -> Callable[..., Sequence[Any]]:
        module = copy.deepcopy(steps[index].module)
        retarget(module, home, devices[index])
        _move_leaves(module, home, devices[index])
        inputs = [_on(value, home, devices[index]) for value in steps[index].fake_inputs]
        with torch.no_grad():
            return compile_part(module, inputs, patches)

    return compile_deduplicated(keys, compile_stage, "pipeline")


def _move_leaves(module: torch.fx.GraphModule, home: torch.device, device: torch.device) -> None:
    """Move the weights of leaf modules, which are not inputs of a stage."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            moved = parameter.detach().to(place(parameter.device, home, device))
            setattr(part, name, torch.nn.Parameter(moved, requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffer.to(place(buffer.device, home, device)))


def _on(value: Any, home: torch.device, device: torch.device) -> Any:
    """Return a stage's fake input on the device on which the stage reads it."""
    if not isinstance(value, FakeTensor) or (here := place(value.device, home, device)) == value.device:
        return value
    with value.fake_mode, torch.no_grad():
        return value.to(here)
