"""A program behind the interface of a pipeline's runtime runs on the fake of a GPU's driver."""

import operator

import pytest
import torch
from cuda_fakes import FakeDriver
from on_fake_gpus import gpus, linear  # noqa: F401
from torch import nn
from torch._inductor import config as inductor_config
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fx_partition.backends.cuda import runtime as cuda_runtime
from fx_partition.backends.cuda.runtime import CudaRuntime, own_graphs_only
from fx_partition.backends.devices.home_device import home_of
from fx_partition.backends.streaming.pipeline import Pipeline
from fx_partition.backends.streaming.program import make_program
from fx_partition.backends.streaming.request_signature import RequestSignature
from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import annotated
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import cut, planned_graph

WIDTH = 32


@pytest.mark.parametrize(
    "places",
    [
        pytest.param(("cpu:0", "cpu:1"), id="two devices"),
        pytest.param(("cpu:0", "cpu:0"), id="two on one", marks=pytest.mark.slow),
    ],
)
def test_a_stream_equals_eager(places):
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh()))).eval()
    x = torch.randn(4, WIDTH)
    captured = capture(model, x)
    memory = analyze_memory(captured)
    plan = make_plan(captured, memory, Request.check(None, places))
    assert plan.num_partitions == 2
    captured = planned_graph(captured, plan)
    program = make_program(captured, cut(captured, plan), memory.written)
    assert all(step.is_static for step in program.steps)
    driver = FakeDriver()
    devices = [torch.device(partition.device) for partition in plan.partitions]
    runtime = CudaRuntime(
        program, devices, torch.device("cpu"), 3, {}, graphs=False, persist=False, driver=driver
    )
    with Pipeline(plan, RequestSignature(captured, program, x), runtime, 3) as pipe:
        requests = [torch.randn(4, WIDTH) for _ in range(8)]
        results = list(pipe.map(requests))
        futures = [pipe.submit(request) for request in requests]
        with torch.no_grad():
            for request, result, future in zip(requests, results, futures, strict=True):
                torch.testing.assert_close(result, model(request))
                torch.testing.assert_close(future.result(timeout=30), model(request))
    assert not driver.violations


def test_what_the_model_has_on_the_cpu_on_purpose_stays_there(gpus, monkeypatch):  # noqa: F811
    """A model on a fake GPU, with a scalar and an input on the CPU; what computes on the host is not captured."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(linear(WIDTH, "cuda:0") for _ in range(3))
            self.register_buffer("scale", torch.tensor(3.0))

        def forward(self, x, bias):
            y = self.layers[0](x) * self.scale + torch.ones(WIDTH, device="cuda")
            y = self.layers[2](self.layers[1](y))
            return y + bias.to(x.device), self.scale + 1, torch.zeros(WIDTH).to("cuda:0")

    model = Net().eval()
    args = torch.empty(4, WIDTH, device="cuda:0"), torch.empty(WIDTH)
    captured = annotated(capture(model, args))
    monkeypatch.setattr(cuda_runtime, "compile_part", lambda gm, inputs, patches: lambda *args: gm(*args))
    home = home_of(captured)
    memory = analyze_memory(captured)
    plan = make_plan(captured, memory, Request.check(None, ["cuda:1", "cuda:2", "cuda:3"]))
    places = [torch.device(partition.device) for partition in plan.partitions]
    captured = planned_graph(captured, plan)
    assert home == torch.device("cuda:0") and len(places) == 3
    static, on_the_cpu = [], []
    with unset_fake_temporarily():  # export has its own mode
        program = make_program(captured, cut(captured, plan), memory.written)
        functions = cuda_runtime.compile_for(program.steps, places, home, {})
        for step, place, function in zip(program.steps, places, functions, strict=True):
            there = cuda_runtime._cuda_step(step, place, function, home, FakeDriver())
            inputs = enumerate(step.fake_inputs)
            taken = [value if i in there.inputs_on_host else value.to(place) for i, value in inputs]
            with step.fake_inputs[0].fake_mode:
                results = function(*taken)
            for i, result in enumerate(results):
                assert result.device == (torch.device("cpu") if i in there.outputs_on_host else place)
            static.append(there.static)
            on_the_cpu.append(any(value.device.type == "cpu" for value in (*step.fake_inputs, *step.fake_outputs)))
    assert True in static and True in on_the_cpu
    assert not any(map(operator.and_, static, on_the_cpu))


def test_leaf_modules_take_their_weights_along(monkeypatch):
    """In a graph of torch.fx.symbolic_trace; the model's own stay where they are."""
    model, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)).eval(), torch.randn(4, WIDTH)
    captured = annotated(capture(torch.fx.symbolic_trace(model), (x,)))
    memory = analyze_memory(captured)
    program = make_program(captured, cut(captured, make_plan(captured, memory, Request.check("1GiB"))), memory.written)
    monkeypatch.setattr(cuda_runtime, "compile_part", lambda gm, inputs, patches: lambda *args: gm(*args))
    meta = torch.device("meta")
    (function,) = cuda_runtime.compile_for(program.steps, [meta], torch.device("cpu"), {})
    (result,) = function(x.to(meta))
    assert result.is_meta and not any(tensor.is_meta for tensor in model.state_dict().values())


def test_a_dynamic_batch_is_not_static():
    x = torch.randn(4, WIDTH)
    captured = capture(nn.Linear(WIDTH, WIDTH), (x,), ({0: torch.export.Dim("batch")},))
    memory = analyze_memory(captured)
    plan = make_plan(captured, memory, Request.check("1GiB"))
    program = make_program(captured, cut(captured, plan), memory.written)
    assert not program.steps[0].is_static


def test_inductor_s_own_graphs_are_off_and_asking_for_them_is_refused():
    with inductor_config.patch({"triton.cudagraphs": True}):  # as for another compiled model of the process
        assert own_graphs_only({"max_autotune": True}) == {"max_autotune": True, "triton.cudagraphs": False}
    assert own_graphs_only({"triton.cudagraphs": False}) == {"triton.cudagraphs": False}
    with pytest.raises(PartitionError, match=r"triton.cudagraphs.*leave the option out"):
        own_graphs_only({"triton.cudagraphs": True})
