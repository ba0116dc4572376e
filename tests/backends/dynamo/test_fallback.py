"""Graphs that cannot be cut run whole, with a warning that says why, and never crash."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from eager_stages import use_eager_stages
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed, TensorifyScalarRestartAnalysis

import fx_partition
from fx_partition.backends.dynamo import graph_compiler, partition_compiler
from fx_partition.backends.dynamo.fallback import FALLBACKS
from fx_partition.common.errors import PartitionError, PartitionWarning, UnreadableError
from fx_partition.passes.footprint.effect_cache import Effects
from fx_partition.passes.plan.plan import Plan
from fx_partition.report.compiled_plans import compiled_graphs

X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)])

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.fixture(autouse=True)
def eager_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="l2partition", options={"cache_bytes": "20KiB", **options})


def refuse(*_: Any, **__: Any) -> Any:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("module", "function", "why"),
    [
        (graph_compiler, "capture_dynamo", "it could not be planned: KeyError: 'no such thing'"),
        (graph_compiler, "analyze_memory", "it could not be planned: KeyError: 'no such thing'"),
        (graph_compiler, "make_plan", "it could not be planned: KeyError: 'no such thing'"),
        (partition_compiler, "split_stages", "its 4 partitions could not be compiled apart: KeyError: 'no such thing'"),
        (partition_compiler, "lower", "its 4 partitions could not be compiled apart: KeyError: 'no such thing'"),
        (partition_compiler, "assemble", "its 4 partitions could not be compiled apart: KeyError: 'no such thing'"),
    ],
)
@torch.no_grad()
def test_whatever_fails_the_graph_runs_whole_and_says_so(
    module: ModuleType, function: str, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, function, refuse)
    model, before = Model(), FALLBACKS["KeyError"]
    caplog.set_level(logging.INFO, logger="fx_partition")
    with pytest.warns(PartitionWarning, match="this graph runs as one partition") as seen:
        assert torch.allclose(compiled(model)(X), model(X), atol=1e-6)
    assert [str(w.message) for w in seen if w.category is PartitionWarning] == [
        f"this graph runs as one partition, as {why}"
    ]
    assert FALLBACKS["KeyError"] == before + 1
    (record,) = [record for record in caplog.records if record.name == "fx_partition"]
    assert why in record.getMessage() and record.exc_info
    assert f"The graph runs as one partition, as {why}." in fx_partition.report(model)
    (graph,) = compiled_graphs(model)
    assert Plan.from_json(json.dumps(json.loads(fx_partition.report(model, "json")))) == graph.plan
    if function in ("capture_dynamo", "analyze_memory"):
        assert not graph.plan.partitions  # nothing is known of it
    else:
        assert graph.plan.num_partitions == 1 and graph.plan.spill_bytes > 0


@torch.no_grad()
def test_with_other_devices_asked_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_compiler, "lower", refuse)
    model = Model()
    with pytest.warns(PartitionWarning, match="this graph runs as one partition"):
        assert torch.allclose(compiled(model, devices=["cpu", "cpu:1"])(X), model(X), atol=1e-6)


@torch.no_grad()
def test_what_the_user_asked_wrongly_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendCompilerFailed, match="keep_together names 'nothing'"):
        compiled(Model(), keep_together=["nothing"])(X)
    with pytest.raises(BackendCompilerFailed, match=r"needs .* by itself"):
        compiled(Model(), oversize="error", cache_bytes="1KiB")(X)


@torch.no_grad()
def test_torch_may_ask_for_another_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    make_plan, calls = graph_compiler.make_plan, []

    def restart(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise TensorifyScalarRestartAnalysis
        return make_plan(*args)

    monkeypatch.setattr(graph_compiler, "make_plan", restart)
    model = Model()
    assert torch.allclose(compiled(model)(X), model(X), atol=1e-6)
    assert len(calls) == 2 and compiled_graphs(model)[-1].plan.num_partitions == 4


@torch.no_grad()
def test_what_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Effects.of

    def refuse_relu(self: Any, node: torch.fx.Node, *rest: Any) -> Any:
        if getattr(node.target, "__name__", "").startswith("relu"):
            raise ZeroDivisionError("no bytes")
        return look(self, node, *rest)

    monkeypatch.setattr(Effects, "of", refuse_relu)
    model = Model()
    with pytest.raises(UnreadableError, match=r"relu \(relu.*\) cannot be read: ZeroDivisionError: no bytes"):
        fx_partition.plan(model, X, cache_bytes="20KiB")
    with pytest.warns(PartitionWarning, match=r"as x \(relu\) cannot be read: ZeroDivisionError: no bytes"):
        assert torch.allclose(compiled(model)(X), model(X), atol=1e-6)


@torch.no_grad()
def test_nested_tensors_run_whole() -> None:
    rows = [torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) for n in (3, 5)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    model = Model()
    with pytest.warns(PartitionWarning, match=r"as \w+ is a nested tensor \(torch.jagged\)"):
        assert torch.allclose(compiled(model)(nested).values(), model(nested).values(), atol=1e-6)


@pytest.mark.parametrize("optimizer", [pytest.param(torch.optim.SGD, marks=pytest.mark.slow), torch.optim.AdamW])
def test_a_step_of_an_optimizer(optimizer: Callable[..., Any]) -> None:
    """Dynamo holds the parameters as attributes of the graph."""

    def train(backend: str) -> Tensor:
        torch._dynamo.reset()
        model = Model()
        optim = optimizer(model.parameters(), lr=0.1, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}))
        options = {"cache_bytes": "20KiB"} if backend == "l2partition" else None
        step = torch.compile(optim.step, backend=backend, options=options)
        for _ in range(3):
            optim.zero_grad()
            model(X).square().mean().backward()
            step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(train("l2partition"), train("aot_eager"))


class Sparse(nn.Module):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        torch.manual_seed(0)
        dense = torch.eye(4) + (torch.rand(4, 4) > 0.5)
        self.register_buffer("edges", dense.to_sparse() if layout is torch.sparse_coo else dense.to_sparse_csr())
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sparse.mm(self.edges, self.up(x).relu())
        return torch.sparse.mm(self.edges, self.down(x))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
@torch.no_grad()
def test_a_sparse_buffer_counts_its_indices_and_values(layout: torch.layout) -> None:
    model = Sparse(layout)
    cut = fx_partition.split(model, X, cache_bytes="20KiB")
    assert torch.equal(cut(X), model(X)) and cut.plan.num_partitions > 1
    count = int(model.edges._nnz())
    edges = count * (4 + 16) if layout is torch.sparse_coo else count * (4 + 8) + 5 * 8
    dense = model.up.weight.nbytes + model.up.bias.nbytes
    whole = fx_partition.plan(model, X, cache_bytes="1MiB")
    assert whole.partitions[0].weight_bytes == 2 * dense + edges


def test_a_sparse_input_is_refused_by_name() -> None:
    class Graph(nn.Module):
        def forward(self, edges: Tensor, x: Tensor) -> Tensor:
            return torch.sparse.mm(edges, x)

    for call in (fx_partition.plan, fx_partition.split):
        with pytest.raises(PartitionError, match=r"edges is a sparse or opaque tensor \(torch.sparse_coo\)"):
            call(Graph(), (torch.eye(4).to_sparse(), X), cache_bytes="20KiB")
