"""Copies between devices in a plain call: what the host takes part in is complete when the call goes on."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cuda_fakes import FakeDriver
from on_fakes import FakeGpus, gpus, linear  # noqa: F401
from torch import Tensor, nn

from fx_partition.backends.inline import assemble
from fx_partition.backends.stages import Boundaries, Stage
from fx_partition.backends.store import Store
from fx_partition.passes.capture import annotated, capture
from fx_partition.passes.gather import gather_facts
from fx_partition.passes.planning import make_plan
from fx_partition.passes.request import Request
from fx_partition.passes.split import cut

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
    plan = make_plan(captured, gather_facts(captured), Request.check("1GiB"))
    nodes = {node.name: node for node in captured.gm.graph.nodes if node.op.startswith("call_")}
    parts = [["mul"], ["add_"], ["mul_1", "add"]]
    assert [name for part in parts for name in part] == list(nodes)
    (whole,) = plan.partitions
    plan = replace(plan, partitions=tuple(replace(whole, index=i, nodes=tuple(p)) for i, p in enumerate(parts)))
    stubs = cut(captured, plan)
    boundaries = Boundaries(captured, stubs)
    stages = [Stage(i, torch.device(devices[i]), stub, boundaries) for i, stub in enumerate(stubs)]

    def install(put: Callable[[Stage, Callable[..., Any]], None]) -> None:
        for stage in stages:
            put(stage, stage.stub.module)

    run = assemble(captured, stages, install, frozenset({"state"}))
    for i in range(3):
        sample = torch.randn(4)
        torch.testing.assert_close(run(sample, written), sample * i + sample * (i + 1))
        torch.testing.assert_close(written, torch.full((4,), i + 1.0))


def test_copies_of_weights_are_waited_for() -> None:
    """A later call may read them on another stream."""
    driver = FakeDriver()
    store, device, weight = Store(driver), torch.device("cpu:1"), torch.ones(2)

    def host_has_seen_all() -> bool:
        clock = driver.current(device).clock
        return bool(clock) and all(driver.host.get(name, 0) >= tick for name, tick in clock.items())

    driver.put(torch.ones(1), device)  # stands for the copy, and what it has to wait for
    kept = store.place(weight, device)
    assert host_has_seen_all()
    driver.put(torch.ones(1), device)
    kept.refresh()
    assert not host_has_seen_all()  # nothing to copy
    weight.mul_(2)
    kept.refresh()
    assert host_has_seen_all() and torch.equal(kept.tensor, torch.full((2,), 2.0))
