"""A program behind the interface of a pipeline's runtime, on the stand-in for GPUs."""

import pytest
import torch
from cuda_fakes import FakeDriver
from torch import nn

from fx_partition.backends.cuda_runtime import CudaRuntime
from fx_partition.backends.program import make_program
from fx_partition.backends.signature import Signature
from fx_partition.backends.stream import Pipeline
from fx_partition.passes.capture import capture
from fx_partition.passes.gather import gather_facts
from fx_partition.passes.planning import make_plan
from fx_partition.passes.request import Request
from fx_partition.passes.split import cut, planned_graph

WIDTH = 32


@pytest.mark.parametrize("places", [("cpu:0", "cpu:1"), ("cpu:0", "cpu:0")], ids=["two devices", "two on one"])
def test_a_stream_equals_eager(places):
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh()))).eval()
    x = torch.randn(4, WIDTH)
    captured = capture(model, x)
    facts = gather_facts(captured)
    plan = make_plan(captured, facts, Request.check(None, places))
    assert plan.num_partitions == 2
    captured = planned_graph(captured, plan)
    program = make_program(captured, cut(captured, plan), facts.written)
    assert all(step.is_static for step in program.steps)
    driver = FakeDriver()
    devices = [torch.device(partition.device) for partition in plan.partitions]
    runtime = CudaRuntime(
        program, devices, torch.device("cpu"), 3, {}, graphs=False, persist=False, driver=driver
    )
    with Pipeline(plan, Signature(captured, program, x), runtime, 3) as pipe:
        requests = [torch.randn(4, WIDTH) for _ in range(8)]
        results = list(pipe.map(requests))
        futures = [pipe.submit(request) for request in requests]
        with torch.no_grad():
            for request, result, future in zip(requests, results, futures, strict=True):
                torch.testing.assert_close(result, model(request))
                torch.testing.assert_close(future.result(timeout=30), model(request))
    assert not driver.violations


def test_a_dynamic_batch_is_not_static():
    x = torch.randn(4, WIDTH)
    captured = capture(nn.Linear(WIDTH, WIDTH), (x,), ({0: torch.export.Dim("batch")},))
    facts = gather_facts(captured)
    plan = make_plan(captured, facts, Request.check("1GiB"))
    program = make_program(captured, cut(captured, plan), facts.written)
    assert not program.steps[0].is_static
