"""Operators that change metadata in place: every reader sees the layout of its own moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eager_stages import use_eager_stages
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fx_partition
from fx_partition.common.errors import PartitionError, UnreadableError
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.report.compiled_plans import compiled_graphs

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
Change = Callable[[Tensor], Any]

CHANGES: dict[str, Change] = {
    "t_": lambda v: v.t_(),
    "transpose_": lambda v: v.transpose_(0, 1),
    "swapaxes_": lambda v: v.swapaxes_(0, 1),
    "swapdims_": lambda v: v.swapdims_(0, 1),
    "as_strided_": lambda v: v.as_strided_((3, 2), (1, 3)),
    "unsqueeze_": lambda v: v.unsqueeze_(0),
    "squeeze_": lambda v: v.unsqueeze_(0).squeeze_(),
    "resize_": lambda v: v.resize_(2, 3),
    "set_": lambda v: v.set_(v.new_ones(3, 3)),
    "detach_": lambda v: v.detach_(),
    "two in a row": lambda v: v.t_().unsqueeze_(1),
    "after a write": lambda v: v.relu_().t_(),
    "an overload of ATen": lambda v: torch.ops.aten.t_.default(v),
}


def of_a_buffer(model: nn.Module, x: Tensor, change: Change) -> Any:
    v = model.buf.view(4, 4)
    n = v.narrow(0, 0, 2)
    change(v)
    return n * 2, v * 3, model.up(x), v


def of_a_parameter(model: nn.Module, x: Tensor, change: Change) -> Any:
    v = model.up.weight.detach()
    n = v[0]
    change(v)
    return n * 2, v * 3, model.up(x)


def of_the_buffer_itself(model: nn.Module, x: Tensor, change: Change) -> Any:
    a, n = model.buf * 2, model.buf[1]
    change(model.buf)
    return a, n * 2, (model.buf * 3).sum() + model.up(x)


def of_an_activation(model: nn.Module, x: Tensor, change: Change) -> Any:
    y = model.up(x)
    n, r = y.narrow(0, 0, 2), y.relu()
    change(y)
    return n * 2, (y * 3).sum() + model.down(x), model.down(r), y


def of_a_view(model: nn.Module, x: Tensor, change: Change) -> Any:
    y = model.up(x)
    v, r = y.view(4, 4), y.relu()
    change(v)
    return y * 2, model.down(y), (v * 3).sum(), model.down(r), v, v + 1


def of_the_same_object(model: nn.Module, x: Tensor, change: Change) -> Any:
    y = model.up(x)
    c = y.contiguous()
    r = c * 2
    change(c)
    return y + 1, c * 2, model.down(r), y.sum() + model.down(x)


def of_what_dropout_returns(model: nn.Module, x: Tensor, change: Change) -> Any:
    y = model.up(x)
    c = F.dropout(y, training=False)
    change(c)
    return y + 1, c * 2


def of_an_element(model: nn.Module, x: Tensor, change: Change) -> Any:
    parts = torch.chunk(model.up(x), 2)
    first, second = parts[0], parts[1]
    r = first * 2
    change(first)
    return parts[0] + 1, second * 2, r, first.sum() + model.down(x)


PLACES = [of_a_buffer, of_a_parameter, of_the_buffer_itself, of_an_activation, of_a_view, of_the_same_object,
          of_an_element]  # fmt: skip
# What eager refuses: views may not be detached in place.
CASES = [
    (place, name)
    for place in [*PLACES, of_what_dropout_returns]  # Dynamo believes that it is another tensor
    for name in CHANGES
    if name != "detach_" or place not in (of_a_buffer, of_a_view, of_an_element)
]


# Dynamo transposes ``v`` of three dimensions before it knows that there are three.
REFUSED_BY_DYNAMO = [(of_a_buffer, "two in a row")]


class Model(nn.Module):
    def __init__(self, place: Callable[[nn.Module, Tensor, Change], Any], change: Change) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("buf", torch.randn(4, 4))
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)
        self._place, self._change = place, change

    def forward(self, x: Tensor) -> Any:
        return self._place(self, x, self._change)


class BufferTracer(torch.fx.Tracer):
    proxy_buffer_attributes = True


def traced(model: nn.Module) -> torch.fx.GraphModule:
    return torch.fx.GraphModule(model, BufferTracer().trace(model))


def assert_same(found: Any, wanted: Any) -> None:
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)


@pytest.mark.parametrize(("place", "name"), CASES)
@torch.no_grad()
def test_every_reader_has_the_layout_of_its_moment(place: Any, name: str) -> None:
    wanted = Model(place, CHANGES[name])(X)
    model = Model(place, CHANGES[name])
    cut = fx_partition.split(traced(model), X, cache_bytes=1)
    assert_same(cut(X), wanted)


@pytest.mark.parametrize("name", ["t_", "unsqueeze_"])
@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_graphs_of_torch_export(place: Any, name: str) -> None:
    wanted = Model(place, CHANGES[name])(X)
    program = torch.export.export(Model(place, CHANGES[name]), (X,))
    assert_same(fx_partition.split(program, cache_bytes=1)(X), wanted)


def test_what_is_made_elsewhere_stays_elsewhere() -> None:
    """Only what touches the changed tensor stays with the change."""

    def function(model: nn.Module, x: Tensor, change: Change) -> Tensor:
        y = model.up(x)
        change(y)
        return model.down(y).relu().neg()

    cut = fx_partition.split(traced(Model(function, CHANGES["t_"])), X, cache_bytes=1)
    assert [p.nodes for p in cut.plan.partitions] == [("up", "t_"), ("down",), ("relu",), ("neg",)]


def test_readers_behind_the_change_read_its_result_and_values_are_of_their_moment() -> None:
    def function(model: nn.Module, x: Tensor, change: Change) -> Any:
        y = x.reshape(2, 8) * 2
        n = y.narrow(0, 0, 1)
        change(y)
        return n, y + 1

    graph = traced(Model(function, CHANGES["t_"]))
    captured = capture(graph, (X,))
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    shapes = {name: tuple(captured.values[nodes[name]].shape) for name in ("mul", "narrow", "t_", "add")}
    assert shapes == {"mul": (2, 8), "narrow": (1, 8), "t_": (8, 2), "add": (8, 2)}
    assert nodes["add"].args[0] is nodes["t_"] and nodes["narrow"].args[0] is nodes["mul"]
    assert "add = mul + 1" in graph.code  # the graph that was given is as it was


def test_a_change_of_metadata_reads_no_bytes() -> None:
    captured = capture(traced(Model(of_a_buffer, CHANGES["t_"])), (X,))
    memory = analyze_memory(captured)
    number = memory.weight_names.index("buf")
    touched = {step.node: step.weights[number] for step in memory.steps if number in step.weights}
    assert touched == {"view": 0, "narrow": 0, "t_": 0, "mul": 32, "mul_1": 64}


def test_a_resized_result_has_its_new_size() -> None:
    def function(model: nn.Module, x: Tensor, change: Change) -> Any:
        y = model.up(x)
        out = y.new_empty(0)
        torch.mul(y, 2, out=out)
        return y + 1, out * 2, model.down(out)

    model = Model(function, CHANGES["t_"])
    with torch.no_grad():
        cut = fx_partition.split(traced(model), X, cache_bytes=1)
        assert_same(cut(X), model(X))
    memory = analyze_memory(capture(traced(model), X))
    assert next(value.bytes for value in memory.values if value.name == "new_empty") == 64


def test_a_change_of_metadata_without_a_result_is_refused_by_name() -> None:
    def function(model: nn.Module, x: Tensor, change: Change) -> Any:
        values, indices = x.new_empty(0), x.new_empty(0, dtype=torch.long)
        torch.max(x, 1, out=(values, indices))
        return model.up(values)

    graph = traced(Model(function, CHANGES["t_"]))
    with pytest.raises(UnreadableError, match=r"max_1 .* metadata of a tensor that it does not return"):
        fx_partition.plan(graph, X, cache_bytes=1)


def test_pipelines_refuse_a_buffer_that_each_request_would_turn() -> None:
    with pytest.raises(PartitionError, match="t_ changes the metadata of buf"):
        fx_partition.pipeline(Model(of_the_buffer_itself, CHANGES["t_"]), X, cache_bytes=1, devices="cpu:threads")


@pytest.mark.parametrize(
    ("place", "name"),
    [(place, name) for place in PLACES for name in ("t_", "two in a row") if (place, name) not in REFUSED_BY_DYNAMO],
)
@torch.no_grad()
def test_graphs_of_dynamo(place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)
    wanted = Model(place, CHANGES[name])(X)
    model = Model(place, CHANGES[name])
    assert_same(torch.compile(model, backend="l2partition", options={"cache_bytes": 1})(X), wanted)


def test_a_view_of_a_buffer_compiled_by_inductor() -> None:
    model = Model(of_a_buffer, CHANGES["transpose_"])
    wanted = model(X)
    with torch.no_grad():
        found = torch.compile(model, backend="l2partition", options={"cache_bytes": 300})(X)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and a.stride() == b.stride() and torch.allclose(a, b, atol=1e-6)
    assert max(graph.plan.num_partitions for graph in compiled_graphs(model)) > 1


@pytest.mark.parametrize("road", ["split", "backend"])
@torch.no_grad()
def test_squeeze_of_a_symbolic_size_is_read(road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's C++ code for it ends the process on fake tensors."""

    class Squeezes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y.squeeze_(0)
            return y.relu()

    inputs = torch.randn(5, 1, 8), torch.randn(7, 1, 8)
    if road == "split":
        shapes = {"x": {0: torch.export.Dim("batch", min=2)}}
        cut: Any = fx_partition.split(traced(Squeezes()), {"x": inputs[0]}, cache_bytes=1, dynamic_shapes=shapes)
    else:
        use_eager_stages(monkeypatch)
        cut = torch.compile(Squeezes(), backend="l2partition", options={"cache_bytes": 1}, dynamic=True)
    for x in inputs:
        assert_same(cut(x), Squeezes()(x))


@torch.no_grad()
def test_casts_under_autocast_are_values_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Any:
            y = x * 2
            y.t_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                product = y @ y
                return product, product.to(torch.float32)

    use_eager_stages(monkeypatch)
    found = torch.compile(Casts(), backend="l2partition", options={"cache_bytes": 1})(X)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32]
    assert_same(found, Casts()(X))


@torch.no_grad()
def test_views_whose_history_is_unclear_are_not_parameters() -> None:
    """Autograd refuses to say whether a view is a leaf, if it was written in another grad mode than it was made in."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.weight.chunk(2)
            first.as_strided_((4, 2), (1, 4))
            return second * x[:2]

    cut = fx_partition.split(torch.fx.symbolic_trace(Parts()), X, cache_bytes=1)
    assert_same(cut(X), Parts()(X))
