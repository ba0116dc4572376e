"""Values that are accumulated in place are cut between their writes, and states between their reads."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.constraints.atoms import find_atoms
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.report.compiled_plans import compiled_graphs

WIDTH, ROWS, EXPERTS = 16, 6, 4


class Experts(nn.Module):
    """A loop over experts that adds to one result, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out.index_add_(0, rows[i], torch.relu(expert(x[rows[i]])))
        return out


class Residual(nn.Module):
    """In-place operators on a chain of values, with reads between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        y = self.layers[0](x)
        kept = torch.sigmoid(y)
        y += self.layers[1](kept)
        y.mul_(torch.tanh(self.layers[2](y)))
        return nn.functional.relu(y, inplace=True) + self.layers[3](y)


class Views(nn.Module):
    """A view that sees a later write, one that does not, and one that the graph returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        y = self.layers[0](x)
        early = y[:2]
        z = self.layers[1](early * 2)
        late = y.view(WIDTH, ROWS)
        y.add_(z.mean())
        w = self.layers[2](late.reshape(ROWS, WIDTH))
        y.mul_(w)
        return y, self.layers[3](y), y.t()


class Slices(nn.Module):
    """Writes to slices: after each of them the whole tensor is handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        out = torch.zeros(3, ROWS, WIDTH)
        for i, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            out[i] = x
        return out


class Parts(nn.Module):
    """Writes to parts of a whole in other ways, with reads of other parts and of the whole between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        out = torch.ones(4, ROWS, WIDTH)
        out[0].copy_(self.layers[0](x))
        first = out.narrow(0, 0, 2)
        out[1] = self.layers[1](out[0] * 2)
        total = out.sum(0) + first[1]
        out.select(0, 2).transpose(0, 1).mul_(self.layers[2](total).t())
        out.add_(0.5)
        out[out > 3] = 3.0
        out[3, :, ::2] += out[2, :, 1::2]
        return self.layers[3](out), out[:, 0], out


class ViewOfView(nn.Module):
    """A view of a view that sees a later write: all three are one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        y = self.layers[0](x)
        some = y[:2]
        z = self.layers[1](torch.relu(self.layers[2](x)))
        one = some[0]
        y.add_(z)
        return self.layers[3](one * 1), torch.tanh(y)


X = torch.randn(ROWS, WIDTH)
IDS = torch.stack([torch.randperm(ROWS)[:4] for _ in range(EXPERTS)])
# Models, each with the least number of partitions that it must be possible to cut it into.
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "experts": (Experts, 12), "residual": (Residual, 8), "views": (Views, 3), "slices": (Slices, 10),
    "parts": (Parts, 8), "view of view": (ViewOfView, 3),
}  # fmt: skip


def assert_equal(found: Any, expected: Any) -> None:
    as_tuple = (found,) if isinstance(found, Tensor) else found
    for mine, theirs in zip(as_tuple, (expected,) if isinstance(expected, Tensor) else expected, strict=True):
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()
        assert theirs.abs().sum() > 0.1


@pytest.mark.parametrize("order", ["trace", "search"])
@pytest.mark.parametrize("name", list(MODELS))
def test_a_cut_graph_writes_as_the_model_does(name: str, order: str) -> None:
    make, parts = MODELS[name]
    model = make()
    cut = fx_partition.split(model, (X, IDS), cache_bytes=1, order=order)
    assert cut.plan.num_partitions >= parts
    for x in (X, torch.randn(ROWS, WIDTH)):
        assert_equal(cut(x, IDS), model(x, IDS))


@pytest.mark.parametrize(
    "name", ["experts", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "experts")]
)
def test_compiled_stages_write_copies(name: str) -> None:
    make, parts = MODELS[name]
    model = make()
    torch._dynamo.reset()
    options = {"cache_bytes": 1, "report": False, "order": "trace"}
    fast = torch.compile(model, backend="l2partition", options=options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", fx_partition.PartitionWarning)
        for x in (X, torch.randn(ROWS, WIDTH)):
            torch.testing.assert_close(fast(x, IDS), model(x, IDS))
    (graph,) = compiled_graphs(model)
    assert graph.plan.num_partitions >= parts


@pytest.mark.parametrize("name", ["slices", pytest.param("parts", marks=pytest.mark.slow)])
def test_gradients_flow_through_what_is_written_by_parts(name: str) -> None:
    model = MODELS[name][0]()
    torch._dynamo.reset()
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 1, "report": False})
    grads = []
    for call in (fast, model):
        model.zero_grad()
        results = call(X, IDS)
        sum(r.square().sum() for r in ([results] if isinstance(results, Tensor) else results)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*grads)


class Accumulated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        y = self.layers[0](x)
        y += self.layers[1](torch.sigmoid(y))
        y.mul_(2)
        return torch.tanh(self.layers[2](y))


def test_gradients_flow_through_what_is_handed_on() -> None:
    model = Accumulated()
    torch._dynamo.reset()
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 1, "report": False})
    fast(X, IDS).sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(X, IDS).sum().backward()
    torch.testing.assert_close(found, [p.grad for p in model.parameters()])


def test_experts_may_be_in_different_partitions() -> None:
    captured = capture(Experts(), (X, IDS))
    memory = analyze_memory(captured)
    atoms = find_atoms(captured, memory)
    assert len(atoms.starts) - 1 == len(memory.steps)  # each step is an atom


def test_a_write_by_a_slice_stays_with_what_it_writes_alone() -> None:
    captured = capture(Slices(), (X, IDS))
    memory = analyze_memory(captured)
    sizes = [end - start for start, end in pairwise(find_atoms(captured, memory).starts)]
    assert max(sizes) == 3, "the view, the write through it, and the view of the whole behind"
    assert len(sizes) == 1 + 3 * 3, "zeros, and for each layer linear, relu and the write"


class OwnAlias(nn.Module):
    """An alias that the model makes, behind a write, and whose metadata alone it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        y = self.layers[0](x)
        y[0] = 1.0
        z = y[...]
        z.transpose_(0, 1)
        return y, self.layers[1](y), z


def test_an_alias_of_the_model_is_not_a_name_of_the_whole() -> None:
    model = OwnAlias()
    cut = fx_partition.split(model, (X, IDS), cache_bytes=1)
    assert_equal(cut(X, IDS), model(X, IDS))
    torch._dynamo.reset()
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 1, "report": False})
    with torch.no_grad():
        torch.testing.assert_close(fast(X, IDS), model(X, IDS))


def test_a_graph_that_was_read_once_is_read_again_as_it_is() -> None:
    once = capture(Slices(), (X, IDS)).gm
    assert capture(once).gm is once


def test_no_view_is_written_where_gradients_are_off_and_used_where_they_are_on() -> None:
    class Model(Slices):
        def forward(self, x: Tensor, rows: Tensor) -> Tensor:
            out = self.layers[0](x).view(2, -1) * 1
            with torch.no_grad():
                out[0] = 1.0
            out[1] = 2.0
            return self.layers[1](out.view(x.shape)) * 3

    model = Model()
    torch._dynamo.reset()
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 1, "report": False})
    torch.testing.assert_close(fast(X, IDS), model(X, IDS))
    fast(X, IDS).sum().backward()
    assert all(p.grad is not None for p in model.layers[1].parameters())


class Decoder(nn.Module):
    """Layers that read a position, which is counted on at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.register_buffer("position", torch.zeros(1, dtype=torch.long))
        self.register_buffer("table", torch.randn(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) + self.table[self.position]
        self.position.add_(1)
        return x


def test_a_counter_does_not_hold_the_layers_together() -> None:
    model, eager = Decoder(), Decoder()
    eager.load_state_dict(model.state_dict())
    cut = fx_partition.split(model, X, cache_bytes="2KiB")
    assert cut.plan.num_partitions >= 3 and cut.plan.spill_bytes == 0
    for _ in range(3):
        assert torch.equal(cut(X), eager(X))
    assert int(model.position) == int(eager.position) == 3


@pytest.mark.slow
def test_a_pipeline_keeps_a_counter_in_one_stage() -> None:
    """The next request would read it before this one has counted on."""
    model, eager = Decoder().eval(), Decoder().eval()
    eager.load_state_dict(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fx_partition.PartitionWarning)
        pipe = fx_partition.pipeline(model, X, cache_bytes="2KiB", devices=["cores:0"] * 3)
    with pipe, torch.no_grad():
        found = list(pipe.map(X for _ in range(8)))
        torch.testing.assert_close(found, [eager(X) for _ in range(8)])


def test_the_given_graph_is_not_changed() -> None:
    graph = torch.export.export(Residual(), (X, IDS)).module()
    assert isinstance(graph, torch.fx.GraphModule)
    before, state = graph.code, list(graph.state_dict())
    cut = fx_partition.split(graph, cache_bytes=1)
    assert graph.code == before and list(cut.state_dict()) == state
    assert_equal(copy.deepcopy(cut)(X, IDS), graph(X, IDS))
