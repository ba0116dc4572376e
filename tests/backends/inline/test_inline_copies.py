"""Copies to and from the host are complete when a plain call continues."""

from __future__ import annotations

import copy
import gc
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cuda_fakes import FakeDriver
from on_fake_gpus import FakeGpus, gpus, linear  # noqa: F401
from torch import Tensor, nn

from fx_partition.backends.inline.runtime import assemble
from fx_partition.backends.lowering import compile_stages
from fx_partition.backends.lowering.stage import Boundaries, Stage
from fx_partition.backends.weights.device_copies import STORE, Store, WeightOnDevice
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import annotated
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import cut
from fx_partition.report.compiled_plans import compiled_graphs

WIDTH = 8


class Counting(nn.Module):
    """Three layers; every call adds the last one's input to a buffer and to its second argument."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(WIDTH, device) for _ in range(3))
        self.register_buffer("calls", torch.zeros(4, WIDTH, device=device))

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layers[1](self.layers[0](x))
        self.calls.add_(y)
        cache.add_(y)
        return self.layers[2](y), y


@pytest.mark.parametrize(
    ("home", "devices", "kinds"),
    [
        ("cpu", ["cuda:0", "cuda:1", "cuda:2"], {"to the host", "from the host", "between GPUs"}),
        ("cpu", ["cuda:0", "cpu", "cuda:0"], {"to the host", "from the host"}),
        ("cuda:0", ["cuda:0", "cuda:1", "cuda:2"], {"between GPUs"}),
        ("cuda:0", ["cuda:0", "cpu", "cuda:1"], {"to the host", "from the host", "between GPUs"}),
    ],
)
def test_only_copies_between_gpus_are_left_to_their_streams(
    gpus: FakeGpus, home: str, devices: list[str], kinds: set[str]  # noqa: F811
) -> None:
    model = Counting(home)
    x, cache = (torch.empty(4, WIDTH, device=home) for _ in range(2))
    run = torch.compile(model, backend="l2partition", options={"devices": devices})
    results = run(x, cache)
    assert [str(result.device) for result in results] == [home, home]
    found = set()
    for source, target, unwaited in gpus.moves:
        kind = "to the host" if target == "cpu" else "from the host" if source == "cpu" else "between GPUs"
        found.add(kind)
        assert unwaited == (kind == "between GPUs"), (source, target)
    assert found == kinds


@pytest.mark.parametrize("devices", [("cpu", "cpu:1", "cpu"), ("cpu:1", "cpu", "cpu:1"), ("cpu:1", "cpu:2", "cpu:1")])
@pytest.mark.parametrize("is_weight", [False, True], ids=["an input", "a buffer"])
def test_what_one_stage_writes_the_next_ones_see(devices: tuple[str, ...], is_weight: bool) -> None:
    """The value is read, written and read again, each time by another stage."""

    graph = torch.fx.Graph()
    x, state = graph.placeholder("x"), graph.placeholder("state")
    before = graph.call_function(operator.mul, (x, state))
    graph.call_method("add_", (state, 1))
    graph.output(graph.call_function(operator.add, (before, graph.call_function(operator.mul, (x, state)))))
    written = torch.zeros(4)
    captured = annotated(capture(torch.fx.GraphModule(nn.Module(), graph), (torch.ones(4), written)))
    if is_weight:  # which Dynamo passes as an input
        captured = replace(captured, weights={captured.gm.graph.find_nodes(op="placeholder")[1]: written})
    plan = make_plan(captured, analyze_memory(captured), Request.check("1GiB"))
    nodes = {node.name: node for node in captured.gm.graph.nodes if node.op.startswith("call_")}
    parts = [["mul"], ["add_"], ["mul_1", "add"]]
    assert [name for part in parts for name in part] == list(nodes)
    (whole,) = plan.partitions
    plan = replace(plan, partitions=tuple(replace(whole, index=i, nodes=tuple(p)) for i, p in enumerate(parts)))
    graphs = cut(captured, plan)
    boundaries = Boundaries(captured, graphs)
    stages = [Stage(i, torch.device(devices[i]), graph, boundaries) for i, graph in enumerate(graphs)]

    def install(put: Callable[[Stage, Callable[..., Any]], None]) -> None:
        for stage in stages:
            put(stage, stage.partition.module)

    run = assemble(captured, stages, install, frozenset({"state"}))
    for i in range(3):
        sample = torch.randn(4)
        torch.testing.assert_close(run(sample, written), sample * i + sample * (i + 1))
        torch.testing.assert_close(written, torch.full((4,), i + 1.0))


@pytest.fixture
def compiled_stages(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The stages that were compiled; they run as they are written, without inductor."""
    found: list[torch.fx.GraphModule] = []

    def compile_part(gm: torch.fx.GraphModule, inputs: Any, patches: Any) -> Callable[..., Any]:
        found.append(gm)
        return lambda *args: gm(*args)

    monkeypatch.setattr(compile_stages, "compile_part", compile_part)
    return found


class Sums(nn.Module):
    """Adds up what its layers make, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        total = torch.zeros_like(x)
        for layer in self.layers:
            total.add_(torch.relu(layer(x)))
        return total, total * 2


class Steps(Sums):
    """Every layer reads a counter that is written after the last."""

    def forward(self, x: Tensor) -> Any:
        step = self.calls + 1
        for layer in self.layers:
            x = layer(x) + self.calls
        self.calls.add_(1)
        return x, step, self.calls * 1


@pytest.mark.parametrize("devices", [["cpu", "cpu:1"] * 2, ["cpu:1", "cpu:2", "cpu", "cpu:1"]], ids=str)
@pytest.mark.parametrize("build", [Sums, Steps])
def test_what_is_written_in_place_by_stages_on_several_devices(
    build: type[Sums], devices: list[str], compiled_stages: list[torch.fx.GraphModule]
) -> None:
    model = build()
    twin = copy.deepcopy(model)
    run = torch.compile(model, backend="l2partition", options={"devices": devices})
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(4, WIDTH)
            torch.testing.assert_close(run(x), twin(x))
            assert torch.equal(model.calls, twin.calls)
    assert [str(stage.device) for stage in compiled_graphs(model)[-1].stages] == devices


@pytest.mark.parametrize("devices", [["cpu:1"], ["cpu", "cpu:1"]], ids=str)
def test_modules_of_one_class_share_code_and_not_weights(
    devices: list[str], compiled_stages: list[torch.fx.GraphModule]
) -> None:
    """Dynamo traces the first block, and runs its code for the others."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x))) + x

    blocks, x = [Block() for _ in range(3)], torch.randn(4, WIDTH)
    twins = copy.deepcopy(blocks)
    run = [torch.compile(block, backend="l2partition", options={"devices": devices}) for block in blocks]
    gc.collect()
    before = len(STORE._copies)
    with torch.no_grad():
        for factor in (1.0, 1.5):
            for compiled, block, twin in zip(run, blocks, twins, strict=True):
                for weight in (*block.parameters(), *twin.parameters()):
                    weight.mul_(factor)
                torch.testing.assert_close(compiled(x), twin(x))
    assert len(compiled_stages) == len(devices)
    each = 2 * (3 - len(devices))  # weights and biases on the other device
    assert len(STORE._copies) - before == 3 * each
    del blocks[1:], run[1:], block, compiled, weight
    gc.collect()
    assert len(STORE._copies) - before == each


def test_a_weight_that_is_given_other_memory_is_copied_again(compiled_stages: list[torch.fx.GraphModule]) -> None:
    """``load_state_dict(assign=True)`` makes another parameter, and ``data =`` changes no version."""
    model = nn.Linear(WIDTH, WIDTH)
    run = torch.compile(model, backend="l2partition", options={"devices": ["cpu:1"]})
    x = torch.randn(4, WIDTH)
    with torch.no_grad():
        for change in range(4):
            other = nn.Linear(WIDTH, WIDTH)
            if change == 1:
                model.weight.data = other.weight.data
            elif change == 2:
                model.load_state_dict(other.state_dict(), assign=True)
            elif change == 3:
                model.double()
                x = x.double()
            torch.testing.assert_close(run(x), model(x))


def test_copies_that_were_made_under_inference_mode_are_written_outside_it(
    compiled_stages: list[torch.fx.GraphModule],
) -> None:
    models, x = [nn.Sequential(nn.Linear(WIDTH, WIDTH)) for _ in range(2)], torch.randn(4, WIDTH)
    run = [torch.compile(model, backend="l2partition", options={"devices": ["cpu:1"]}) for model in models]
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        for model, compiled in zip(models, run, strict=True):
            with torch.no_grad():
                model[0].weight.add_(1)
            with mode():
                torch.testing.assert_close(compiled(x), model(x))


def test_copies_of_weights_are_waited_for() -> None:
    """A later call may read them on another stream."""
    driver = FakeDriver()
    store, device, weight = Store(driver), torch.device("cpu:1"), torch.ones(2)

    def host_has_seen_all() -> bool:
        clock = driver.current(device).clock
        return bool(clock) and all(driver.host.get(name, 0) >= tick for name, tick in clock.items())

    driver.put(torch.ones(1), device)  # stands for the copy, and what it has to wait for
    here = WeightOnDevice(weight, device, store)
    assert host_has_seen_all()
    driver.put(torch.ones(1), device)
    here(weight)
    assert not host_has_seen_all()  # nothing to copy
    weight.mul_(2)
    assert torch.equal(here(weight), torch.full((2,), 2.0)) and host_has_seen_all()
