"""Atoms are the steps that must stay together."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition.common.errors import PartitionError, PartitionWarning
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.constraints.atoms import find_atoms
from fx_partition.passes.footprint.analyze import analyze_memory


def atoms(function: Any, *inputs: Tensor, keep: Any = ()) -> list[list[str]]:
    """Return the node names of each atom."""
    model = function if isinstance(function, nn.Module) else _wrap(function)
    captured = capture(torch.fx.symbolic_trace(model), inputs)
    memory = analyze_memory(captured)
    found = find_atoms(captured, memory, keep)
    starts = found.starts
    names = [step.node for step in memory.reordered(found.order).steps]
    assert starts[0] == 0 and starts[-1] == len(names)
    return [names[a:b] for a, b in pairwise(starts)]


def _wrap(function: Any) -> Any:
    return torch.fx.GraphModule(nn.Module(), torch.fx.Tracer().trace(function))


X = torch.randn(4, 8)


def test_plain_nodes_are_atoms_of_their_own() -> None:
    assert atoms(lambda x: torch.relu(x + 1).abs(), X) == [["add"], ["relu"], ["abs_1"]]


def test_a_written_value_stays_with_its_writes_and_not_with_later_reads() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        z = x * 2
        y.relu_()
        return torch.neg(y) + z

    assert atoms(function, X) == [["add", "mul", "relu_"], ["neg"], ["add_1"]]


def test_a_write_through_a_view_counts() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        y.view(-1).mul_(2)
        return y.neg()

    assert atoms(function, X) == [["add", "view", "mul_"], ["neg"]]


def test_a_container_stays_with_its_getitems() -> None:
    def function(x: Tensor) -> Tensor:
        a, b = torch.chunk(x, 2, 1)
        return torch.neg(a) + b

    found = atoms(function, X)
    assert found[0][0] == "chunk" and {"getitem", "getitem_1"} <= set(found[0])


def test_a_written_input_is_one_atom_from_its_first_write() -> None:
    def function(x: Tensor, cache: Tensor) -> Tensor:
        first = cache + 1
        y = torch.relu(x)
        cache.copy_(y)
        second = cache * 2
        return first.neg() + second

    assert atoms(function, X, X.clone()) == [["add"], ["relu"], ["copy_", "mul"], ["neg"], ["add_1"]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.b = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_keep_together_by_module_and_by_name() -> None:
    assert atoms(Net(), X) == [["a_0"], ["a_1"], ["b"]]
    assert atoms(Net(), X, keep=["a"]) == [["a_0", "a_1"], ["b"]]
    assert atoms(Net(), X, keep=[["a_1", "b"]]) == [["a_0"], ["a_1", "b"]]
    assert atoms(Net(), X, keep=[["a_0", "b"]]) == [["a_0", "a_1", "b"]]
    for keep in (["c"], [["b", "missing"]]):
        with pytest.raises(PartitionError, match="keep_together names"):
            atoms(Net(), X, keep=keep)


def test_steps_between_the_members_of_a_large_group_move_out_of_it() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        z = x
        for _ in range(30):
            z = torch.neg(z)
        late = torch.abs(y)  # before the write, so it stays
        y.mul_(2)
        return y + z + late

    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        found = atoms(function, X)
    assert ["add", "abs_1", "mul_"] in found
    assert sum(map(len, found)) == 35 and len(found) == 33
    model = torch.fx.GraphModule(nn.Module(), torch.fx.Tracer().trace(function))
    cut = fx_partition.split(model, (X,), cache_bytes=300)
    assert cut.plan.num_partitions > 3
    assert torch.equal(cut(X), function(X))


def test_random_numbers_keep_their_order() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        noise = torch.rand_like(y)
        z = x
        for _ in range(30):
            z = torch.nn.functional.dropout(z, 0.5)
        y.mul_(torch.rand_like(y))
        return y + z + noise

    model = torch.fx.GraphModule(nn.Module(), torch.fx.Tracer().trace(function))
    with pytest.warns(PartitionWarning, match="cannot be separated"):
        cut = fx_partition.split(model, (X,), cache_bytes=300)
    torch.manual_seed(0)
    expected = function(X)
    torch.manual_seed(0)
    assert torch.equal(cut(X), expected)


def test_a_large_atom_is_reported_with_what_caused_it() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        z = y
        for _ in range(30):
            z = torch.neg(z)
        y.mul_(z)
        return y + z

    with pytest.warns(PartitionWarning, match=r"32 of 33 steps .*add to mul_.*: add is written in place"):
        atoms(function, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        atoms(lambda x: (x + 1).mul_(2), X)
