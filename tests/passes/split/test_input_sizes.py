"""A split graph refuses inputs of other sizes than those that a tracer wrote into it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import fx_partition
from fx_partition.common.errors import PartitionError


class Mean(nn.Module):
    """Computes with its batch size, which a tracer makes a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        n = x.shape[0]
        for layer in self.layers:
            x = torch.relu(layer(x)) * scale
        return x.sum(0) / n, x * n


X, Y = torch.randn(4, 8), torch.randn(8, 8)


def split(dynamic: Any = None, model: Any = None) -> tuple[Any, nn.Module]:
    model = model or Mean()
    cut = fx_partition.split(model, (X,), cache_bytes=400, dynamic_shapes=dynamic)
    assert cut.plan.num_partitions > 1
    return cut, model


def same(found: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("how", ["module", "program", "unlifted"])
def test_a_static_graph_refuses_other_sizes(how: str) -> None:
    model = Mean()
    program = torch.export.export(model, (X,))
    cut, _ = split(model={"module": model, "program": program, "unlifted": program.module()}[how])
    assert same(cut(X), model(X))
    for twin in (cut, copy.deepcopy(cut)):
        with pytest.raises(PartitionError, match=r"input 'x' has shape \[8, 8\], .* \[4, 8\]; give dynamic_shapes="):
            twin(Y)
        with pytest.raises(PartitionError, match="input 'x' has shape"):
            twin(X[None])
    with pytest.raises(TypeError, match="input 'x' is int"):
        cut(3)
    assert same(cut(X), model(X))


def test_a_dynamic_graph_takes_its_range() -> None:
    cut, model = split({"x": {0: Dim("rows", min=2, max=16)}})
    for x in (X, Y, Y, torch.randn(16, 8), torch.randn(2, 8)):
        assert same(cut(x), model(x))
    with pytest.raises(PartitionError, match=r"'x' has size 17 in dimension 0, and the graph takes .* to 16"):
        cut(torch.randn(17, 8))
    with pytest.raises(PartitionError, match=r"'x' has shape \[4, 9\]"):
        cut(torch.randn(4, 9))


def test_dimensions_that_are_equal_or_derived_must_be_so() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return torch.relu(x) + 1, torch.cat([torch.sigmoid(x), x]) + y

    rows = Dim("rows", min=2, max=64)
    cut = fx_partition.split(
        Two(), (X, torch.randn(8, 8)), cache_bytes=200, dynamic_shapes=({0: rows}, {0: 2 * rows})
    )
    x, y = torch.randn(3, 8), torch.randn(6, 8)
    assert same(cut(x, y), Two()(x, y))
    with pytest.raises(PartitionError, match=r"'y' has shape \[7, 8\]"):
        cut(x, torch.randn(7, 8))


def test_a_constant_argument_must_be_the_one_of_the_trace() -> None:
    model = Mean()
    program = torch.export.export(model, (X, 3.0))
    cut = fx_partition.split(program, cache_bytes=400)
    assert same(cut(X, 3.0), model(X, 3.0))
    with pytest.raises(PartitionError, match=r"input 'scale' is 2\.0, and the graph was traced for 3\.0 only"):
        cut(X, 2.0)


def test_a_graph_of_symbolic_trace_has_no_sizes_written_in() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    cut = fx_partition.split(torch.fx.symbolic_trace(model), (X,), cache_bytes=400)
    assert torch.equal(cut(Y), model(Y))


def test_the_check_costs_compilers_nothing() -> None:
    cut, model = split()
    torch._dynamo.reset()
    found = torch.compile(cut, backend="aot_eager", fullgraph=True)(X)
    torch.testing.assert_close(found, model(X))
    again = torch.export.export(cut, (X,))
    assert not any("refuse" in node.name for node in again.graph.nodes)
    assert same(again.module()(X), model(X))
