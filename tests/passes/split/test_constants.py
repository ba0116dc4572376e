"""Attributes of a graph's module that are neither parameters nor buffers work after a split."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import split_graph

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def scaled(model: Model, x: Tensor) -> Tensor:
    return model.down(model.up(x) * torch.tensor(0.5))


def written(model: Model, x: Tensor) -> Tensor:
    y = model.up(x).clone()
    y[:, 0] = 0.5
    return model.down(y)


def picked(model: Model, x: Tensor) -> Tensor:
    return model.down(model.up(x)[[2, 0, 1]])


def of_the_root(model: Model, x: Tensor) -> Tensor:
    return model.down(model.up(x) * model.scale) + model.same


def of_a_child(model: Model, x: Tensor) -> Tensor:
    return model.down(model.up(x) * model.up.scale) * torch.tensor(2.0)


class Model(nn.Module):
    def __init__(self, body: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.unused = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(2, 2)
        self.register_buffer("idle", torch.ones(2), persistent=False)
        self.scale = torch.rand(16)
        self.same = self.scale
        self.up.scale = torch.rand(16)
        self._body = body

    def forward(self, x: Tensor) -> Tensor:
        return self._body(self, x)


BODIES = [scaled, written, picked, of_the_root, of_a_child]


def forms(model: nn.Module) -> list[Any]:
    program = torch.export.export(model, (X,))
    return [model, program, program.module()]


@pytest.mark.parametrize("body", BODIES)
@torch.no_grad()
def test_exported_constants_split_bitwise(body: Any) -> None:
    model = Model(body)
    for form in forms(model):
        cut = fx_partition.split(form, X, cache_bytes=1)
        assert cut.plan.num_partitions > 2 and torch.equal(cut(X), model(X))
        module = form.module() if isinstance(form, torch.export.ExportedProgram) else form
        assert list(cut.state_dict()) == list(module.state_dict())
        assert {name for name, _ in cut.named_buffers()} <= {name for name, _ in module.named_buffers()}
        cut.load_state_dict(module.state_dict())


@pytest.mark.parametrize("body", BODIES)
@torch.no_grad()
def test_a_copy_has_constants_of_its_own(body: Any) -> None:
    model = Model(body)
    cut = fx_partition.split(model, X, cache_bytes=1)
    twin = copy.deepcopy(cut)
    assert torch.equal(twin(X), model(X)) and list(twin.state_dict()) == list(cut.state_dict())
    (first, *_) = [node for node in twin.graph.find_nodes(op="get_attr") if "tensor" in str(node.target)] or [None]
    if first is not None:
        mine, other = (operator.attrgetter(first.target)(module) for module in (twin, cut))
        assert mine is not other
        mine.zero_()
        assert torch.equal(cut(X), model(X))
    assert torch.equal(copy.deepcopy(twin)(X), twin(X))


@torch.no_grad()
def test_in_slices_and_where_metadata_is_changed() -> None:
    model = Model(scaled)
    program = torch.export.export(model, (X,))
    cut = fx_partition.split(program, cache_bytes="1KiB", oversize="slice")
    assert cut.plan.slicings and torch.allclose(cut(X), model(X), atol=1e-6)
    assert list(cut.state_dict()) == list(program.module().state_dict())

    def turned(model: Model, x: Tensor) -> Tensor:
        y = model.up(x)
        y.t_()
        return model.down(y[:, :4].t() * torch.tensor(0.5))

    graph = torch.fx.symbolic_trace(Model(turned))
    cut = fx_partition.split(graph, X, cache_bytes=1)
    assert torch.equal(cut(X), graph(X)) and list(cut.state_dict()) == list(graph.state_dict())
    assert {name for name, _ in cut.named_buffers()} == {name for name, _ in graph.named_buffers()}


@torch.no_grad()
def test_an_attribute_that_is_not_a_tensor() -> None:
    root = nn.Module()
    root.sizes = (2, 32)
    graph = torch.fx.Graph()
    x, sizes = graph.placeholder("x"), graph.get_attr("sizes")
    rows = graph.call_function(torch.reshape, (graph.call_function(torch.neg, (x,)), sizes))
    graph.output(graph.call_function(torch.abs, (rows,)))
    gm = torch.fx.GraphModule(root, graph)
    cut = fx_partition.split(gm, X, cache_bytes=1)
    assert cut.plan.num_partitions > 1 and torch.equal(cut(X), gm(X))
    assert torch.equal(copy.deepcopy(cut)(X), gm(X))


@pytest.mark.slow
def test_the_same_constants_in_a_pipeline() -> None:
    model = Model(of_the_root)
    with fx_partition.pipeline(model, X, cache_bytes=1, devices=["cores:0"]) as pipe:
        assert torch.allclose(pipe(X), model(X), atol=1e-6)


@torch.no_grad()
def test_the_models_own_graph_is_not_changed() -> None:
    module = torch.export.export(Model(scaled), (X,)).module()
    before = (list(module.state_dict()), [name for name, _ in module.named_buffers()], set(vars(module)))
    captured = capture(module)
    plan = make_plan(captured, analyze_memory(captured), Request.check(1))
    split_graph(captured, plan)
    assert before == (list(module.state_dict()), [name for name, _ in module.named_buffers()], set(vars(module)))
