"""A split module has the names and the state of its model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition import PartitionError

WIDTH = 8
X = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    """Two layers, and between them a member with a name that the test chooses."""

    def __init__(self, name: str, member: Any) -> None:
        super().__init__()
        self.up, self.down, self.name = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), name
        if isinstance(member, nn.Parameter):
            self.register_parameter(name, member)
        elif isinstance(member, Tensor):
            self.register_buffer(name, member)
        else:
            self.add_module(name, member)

    def forward(self, x: Tensor) -> Tensor:
        member = getattr(self, self.name)
        x = self.up(x)
        return self.down(member(x) if isinstance(member, nn.Module) else x * member)


MEMBERS: dict[str, Callable[[], Any]] = {
    "parameter": lambda: nn.Parameter(torch.randn(WIDTH)),
    "buffer": lambda: torch.randn(WIDTH),
    "child": lambda: nn.Linear(WIDTH, WIDTH),
}


def two_ways(model: nn.Module) -> list[tuple[Any, dict[str, Any]]]:
    """Return a model for torch.export, whose graph reads weights, and a traced one, which calls leaf modules."""
    return [(model, {"example_inputs": X}), (torch.fx.symbolic_trace(model), {"example_inputs": X})]


@pytest.mark.parametrize("kind", MEMBERS)
@pytest.mark.parametrize("name", ["partition_x", "partition_", "partition_9", "partition_00", "partition_0x", "plans"])
def test_a_name_that_no_partition_needs_stays(name: str, kind: str) -> None:
    for model, options in two_ways(Named(name, MEMBERS[kind]())):
        cut = fx_partition.split(model, cache_bytes=400, **options)
        assert 2 <= cut.plan.num_partitions < 9 and torch.equal(cut(X), model(X))
        assert getattr(cut, name) is getattr(model, name) or kind == "child"
        assert list(cut.state_dict()) == list(model.state_dict())
        assert [n for n, _ in cut.named_parameters()] == [n for n, _ in model.named_parameters()]
        other = copy.deepcopy(model)
        with torch.no_grad():
            for tensor in (*other.parameters(), *other.buffers()):
                tensor.add_(1)
        assert not torch.equal(cut(X), other(X))
        found = cut.load_state_dict(other.state_dict(), strict=True)
        assert not found.missing_keys and not found.unexpected_keys
        assert torch.equal(cut(X), other(X))
        copied = copy.deepcopy(cut)
        assert torch.equal(copied(X), cut(X)) and copied.plan == cut.plan
        assert [n for n, _ in copied.named_parameters()] == [n for n, _ in model.named_parameters()]
        assert not copied.load_state_dict(other.state_dict()).missing_keys


@pytest.mark.parametrize("kind", MEMBERS)
@pytest.mark.parametrize("name", ["plan", "partition_0", "partition_1"])
def test_a_name_that_the_split_module_needs_is_an_error(name: str, kind: str) -> None:
    for model, options in two_ways(Named(name, MEMBERS[kind]())):
        before = dict(model.state_dict())
        plan = fx_partition.plan(model, cache_bytes=400, **options)
        assert plan.num_partitions >= 2
        for how in ({"cache_bytes": 400}, {"plan": plan}):
            with pytest.raises(PartitionError, match=rf"has a member '{name}'.*rename"):
                fx_partition.split(model, **how, **options)
        assert model.state_dict().keys() == before.keys() and not hasattr(model, "partition_2")


def test_inputs_and_nodes_may_have_any_name() -> None:
    class Inputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, plan: Tensor, partition_0: Tensor) -> Tensor:
            partition_1 = self.up(plan) * partition_0
            return self.down(partition_1) + partition_0

    model = Inputs()
    cut = fx_partition.split(model, (X, X), cache_bytes=400)
    assert cut.plan.num_partitions >= 2 and torch.equal(cut(X, X + 1), model(X, X + 1))


def split_layers() -> tuple[nn.Module, Any]:
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)))
    cut = fx_partition.split(torch.fx.symbolic_trace(model), X, cache_bytes=400)
    assert cut.plan.num_partitions == 3
    return model, cut


def test_a_split_module_inside_another_module_saves_and_loads() -> None:
    model, cut = split_layers()
    outer, twin = nn.Sequential(cut, nn.ReLU()), nn.Sequential(copy.deepcopy(model), nn.ReLU())
    assert list(outer.state_dict()) == list(twin.state_dict())
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.add_(1)
    assert not torch.equal(outer(X), twin(X))
    outer.load_state_dict(twin.state_dict(), strict=True)
    assert torch.equal(outer(X), twin(X))
    state = twin.state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "0.1.weight"\.'):
        outer.load_state_dict({key: value for key, value in state.items() if key != "0.1.weight"})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "0.partition_1.1.weight"\.'):
        outer.load_state_dict({**state, "0.partition_1.1.weight": torch.zeros(WIDTH, WIDTH)})
    assert torch.equal(outer(X), twin(X)), "no partition loads anything"


def test_a_partition_by_itself_saves_and_loads_what_it_calls() -> None:
    model, cut = split_layers()
    part = cut.get_submodule("partition_1")
    assert list(part.state_dict()) == ["1.weight", "1.bias"]
    part.load_state_dict({key: torch.zeros_like(value) for key, value in part.state_dict().items()})
    assert not model[1].weight.any() and model[0].weight.any()


def test_a_module_that_is_cut_is_not_cut_again() -> None:
    _, cut = split_layers()
    verbs: list[Callable[[], Any]] = [
        lambda: fx_partition.plan(cut, X, cache_bytes=400),
        lambda: fx_partition.split(cut, X, cache_bytes=400),
        lambda: fx_partition.split(cut, X, plan=cut.plan),
        lambda: fx_partition.simulate(cut, X, plan=cut.plan, device="H100-SXM"),
        lambda: fx_partition.pipeline(cut, X, cache_bytes=400),
    ]
    for verb in verbs:
        with pytest.raises(PartitionError, match=r"is split already.*the model that it was made from"):
            verb()
    assert fx_partition.report(cut) == fx_partition.report(cut.plan)
    program = torch.export.export(cut, (X,))  # a new graph, which has the operators themselves
    again = fx_partition.plan(program, cache_bytes=400)
    assert [p.weight_bytes for p in again.partitions] == [p.weight_bytes for p in cut.plan.partitions]
    with pytest.raises(PartitionError, match=r"has a member 'partition_0'.*split the original"):
        fx_partition.split(program, cache_bytes=400)


def test_one_tensor_as_the_example_of_two_inputs() -> None:
    class Difference(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a.mul_(2) - b

    model = Difference()
    traced = torch.fx.symbolic_trace(model)
    for module in (model, traced):
        for examples in ((X, X), {"a": X, "b": X}):
            cut = fx_partition.split(module, examples, cache_bytes=400)
            assert torch.equal(cut(X.clone(), X + 1), model(X.clone(), X + 1))
