"""Pipelines of two stages that call Python, on threads or on fakes of GPUs: nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from cuda_fakes import FakeDriver
from torch import nn

from fx_partition.backends.cuda import runtime as cuda_runtime
from fx_partition.backends.lowering.torch_internals import tensors_of, to_handles
from fx_partition.backends.streaming.pipeline import Pipeline, Runtime
from fx_partition.backends.streaming.program import ProgramStep, make_program
from fx_partition.backends.streaming.request_signature import RequestSignature
from fx_partition.backends.threads.aoti_compile import Code
from fx_partition.backends.threads.runtime import LocalRuntime
from fx_partition.hardware.cores import allowed_cores
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import cut, planned_graph

WIDTH, INFLIGHT = 64, 3
X = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))


def in_python(step: ProgramStep, before: Callable[[], object]) -> Callable[[list[Any]], list[Any]]:
    def call(handles: list[Any]) -> list[Any]:
        tensors = tensors_of(handles)
        before()
        with torch.no_grad():
            return to_handles(step.module(*tensors))

    return call


class Made:
    """The parts of a pipeline of two stages, which call Python: nothing need be compiled."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(layer for _ in range(2) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh()))).eval()
        with torch.no_grad():
            self.expected = self.model(X)
        captured = capture(self.model, X)
        memory = analyze_memory(captured)
        self.plan = make_plan(captured, memory, Request.check(None, 2))
        captured = planned_graph(captured, self.plan)
        self.program = make_program(captured, cut(captured, self.plan), memory.written)
        self.signature = RequestSignature(captured, self.program, X)

    def local(self, before: Callable[[], object] = lambda: None) -> LocalRuntime:
        """A runtime whose stages call ``before`` first."""
        groups = [[(core,)] for core in (*allowed_cores(), *allowed_cores())[:2]]
        codes = [Code(None, in_python(step, before)) for step in self.program.steps]
        return LocalRuntime(self.program, codes, groups, INFLIGHT)

    def cuda(self, driver: FakeDriver | None = None) -> cuda_runtime.CudaRuntime:
        devices = [torch.device("cpu:0"), torch.device("cpu:1")]
        options = {"graphs": False, "persist": False, "driver": driver or FakeDriver()}
        with mock.patch.object(cuda_runtime, "compile_for", lambda steps, *_: [step.module for step in steps]):
            return cuda_runtime.CudaRuntime(self.program, devices, torch.device("cpu"), INFLIGHT, {}, **options)

    def pipeline(self, runtime: Runtime) -> Pipeline:
        return Pipeline(self.plan, self.signature, runtime, INFLIGHT)
