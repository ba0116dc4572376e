"""A split module equals the model: the same results bit by bit, the same state, the same call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import FAMILIES

import fx_partition
from fx_partition import Plan, PlanMismatchError

WIDTH = 64  # a linear layer is 16.25 KiB


def same(a: Any, b: Any) -> bool:
    """Assert that two results are equal bit by bit, in the same containers."""
    left, left_spec = pytree.tree_flatten(a)
    right, right_spec = pytree.tree_flatten(b)
    return left_spec == right_spec and all(
        torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )


def layers(depth: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(depth)))


def weight_bytes(model: nn.Module) -> int:
    return sum({p.data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())


@pytest.mark.parametrize(
    "name",
    ["mlp", "gpt2", "vit", "resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in
     ("llama", "bert", "unet", "mobilenetv2", "transformer_encoder", "t5", "whisper", "mixtral"))],
)  # fmt: skip
def test_exported_families_are_bitwise_equal(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    args, kwargs = family.inputs(3)
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs, strict=False)
        whole = program.module()
        cut = fx_partition.split(program, cache_bytes=int(weight_bytes(model) * 0.3))
        assert cut.plan.num_partitions >= 3
        names = [n for n, _ in cut.named_children() if n.startswith("partition_")]
        assert names == [f"partition_{i}" for i in range(cut.plan.num_partitions)]
        assert same(family.output(cut(*args, **kwargs)), family.output(whole(*args, **kwargs)))
    assert cut.state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("name", ["mlp", "resnet18"])
def test_a_dynamic_batch_stays_dynamic(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    args, _ = family.inputs(3)
    program = torch.export.export(model, args, dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    cut = fx_partition.split(program, cache_bytes=int(weight_bytes(model) * 0.3))
    assert cut.plan.num_partitions >= 3
    assert cut.plan.symbols.hints, "the batch must be a symbol"
    with torch.no_grad():
        for batch in (2, 3, 7):
            args, _ = family.inputs(batch)
            assert same(cut(*args), program.module()(*args))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.act(norm(conv(x)) + x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("train", [False, True])
def test_leaf_modules_and_their_buffers(train: bool) -> None:
    torch.manual_seed(0)
    model = Convolutions().train(train)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8)
    traced = torch.fx.symbolic_trace(model)
    cut = fx_partition.split(traced, x, cache_bytes="40KiB")
    assert cut.plan.num_partitions >= 2
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True)), "splitting ran it"
    for _ in range(2):
        assert same(cut(x), twin(x))
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert model.norms[0].num_batches_tracked.item() == (2 if train else 0)
    assert cut.training is train


def test_the_state_dict_is_the_models_and_loads_into_it() -> None:
    model = layers()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(4, WIDTH)
    cut = fx_partition.split(traced, x, cache_bytes="40KiB")
    assert cut.plan.num_partitions == 3
    assert list(cut.state_dict()) == list(model.state_dict())
    before = cut(x)
    torch.manual_seed(1)
    other = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(6)))
    result = cut.load_state_dict(other.state_dict(), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert same(cut(x), other(x)) and not same(cut(x), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        cut.load_state_dict({k: v for k, v in other.state_dict().items() if k != "3.weight"}, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        cut.load_state_dict({**other.state_dict(), "nothing.weight": x}, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        cut.load_state_dict({**other.state_dict(), "partition_0.0.weight": x}, strict=True)
    assert {id(p) for p in cut.parameters()} == {id(p) for p in model.parameters()}


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(32, WIDTH)
            self.body = layers(4)
            self.head = nn.Linear(WIDTH, 32, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.embed(x)))

    model = Tied()
    x = torch.randint(32, (2, 5))
    for source in (torch.fx.symbolic_trace(model), torch.export.export(model, (x,))):
        cut = fx_partition.split(source, x, cache_bytes="40KiB")
        assert cut.plan.num_partitions >= 2
        assert same(cut(x), model(x))
        assert cut.get_parameter("head.weight") is cut.get_parameter("embed.weight")


def test_deepcopy_is_a_model_of_its_own() -> None:
    model = layers()
    x = torch.randn(4, WIDTH)
    cut = fx_partition.split(model, x, cache_bytes="40KiB")
    twin = copy.deepcopy(cut)
    assert same(twin(x), cut(x)) and twin.plan == cut.plan
    assert list(twin.state_dict()) == list(cut.state_dict())
    expected = cut(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert same(cut(x), expected) and not twin(x).any()


def test_keyword_inputs_and_containers() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = layers(4)

        def forward(self, x: Tensor, *, scale: Tensor, more: dict[str, Tensor]) -> dict[str, Any]:
            return {"y": self.body(x) * scale, "both": [x, more["bias"] + 1]}

    model = Keywords()
    inputs = {"x": torch.randn(2, WIDTH), "scale": torch.randn(1), "more": {"bias": torch.randn(3)}}
    cut = fx_partition.split(model, inputs, cache_bytes="40KiB")
    assert cut.plan.num_partitions >= 2
    assert same(cut(**inputs), model(**inputs))


def test_skip_connections_go_straight_to_their_consumer() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = layers(6)

        def forward(self, x: Tensor) -> Tensor:
            y = first = self.body[0](x)
            for layer in self.body[1:]:
                y = layer(y)
            return y + first

    model, x = Skip(), torch.randn(1, WIDTH)
    cut = fx_partition.split(model, x, cache_bytes="20KiB")
    assert cut.plan.num_partitions == 6
    calls = list(cut.graph.find_nodes(op="call_module"))
    makers = {user: call for call in calls for user in call.users}
    takers = {call: {makers[a] for a in call.args if a in makers} for call in calls}
    assert calls[0] in takers[calls[-1]], "the last partition takes from the first"
    assert all(calls[0] not in takers[call] for call in calls[2:-1]), "and none between carries it"
    assert same(cut(x), model(x))


class Regions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = layers(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.body[:4]:
                x = layer(x)
        with torch.no_grad():
            y = self.body[5](self.body[4](x.float()))
        return x, y


def dynamo_graph(model: nn.Module, *args: Any) -> tuple[torch.fx.GraphModule, list[Any]]:
    found: list[tuple[torch.fx.GraphModule, list[Any]]] = []

    def keep(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append((gm, list(inputs)))
        return gm.forward

    torch.compile(model, backend=keep, fullgraph=True)(*args)
    return found[0]


def test_autocast_and_no_grad_regions_cross_a_boundary() -> None:
    model = Regions()
    x = torch.randn(4, WIDTH)
    gm, inputs = dynamo_graph(model, x)
    cut = fx_partition.split(gm, cache_bytes="36KiB")
    nodes = {name: p.index for p in cut.plan.partitions for name in p.nodes}
    enter = next(n for n in gm.graph.nodes if getattr(n.target, "__name__", "") == "_enter_autocast")
    leave = next(n for n in gm.graph.nodes if getattr(n.target, "__name__", "") == "_exit_autocast")
    assert nodes[leave.name] > nodes[enter.name], "the region must be cut for this test to say anything"
    found, expected = cut(*inputs), model(x)
    assert same(tuple(found), tuple(expected))
    assert found[0].dtype == torch.bfloat16 and found[0].requires_grad and not found[1].requires_grad
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_an_autocast_handle_does_not_cross_a_boundary() -> None:
    """A region is entered again in each partition; its handle is not a tensor, and no compiler accepts it."""
    gm, _ = dynamo_graph(Regions(), torch.randn(4, WIDTH))
    cut = fx_partition.split(gm, cache_bytes="36KiB")
    for index in range(cut.plan.num_partitions):
        part = cut.get_submodule(f"partition_{index}")
        output = next(iter(reversed(part.graph.nodes)))
        crossing = [*part.graph.find_nodes(op="placeholder"), *output.args[0]]
        assert not [n.name for n in crossing if "enter_autocast" in n.name]


def test_views_of_weights_are_repeated_and_do_not_cross() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)
            self.body = layers(4)

        def forward(self, x: Tensor) -> Tensor:
            w = self.weight.t()
            x = x @ w
            return self.body(x) @ w

    model = Shared()
    x = torch.randn(2, WIDTH)
    cut = fx_partition.split(torch.fx.symbolic_trace(model), x, cache_bytes="40KiB")
    assert cut.plan.num_partitions >= 2
    assert same(cut(x), model(x))
    views = [
        node
        for i in range(cut.plan.num_partitions)
        for node in cut.get_submodule(f"partition_{i}").graph.nodes
        if node.target == "t"
    ]
    assert len(views) == 2
    assert not any("t" in p.inputs + p.outputs for p in cut.plan.partitions)


def test_a_plan_from_json_cuts_the_same_graph_alike_and_no_other() -> None:
    model = layers()
    x = torch.randn(4, WIDTH)
    traced = torch.fx.symbolic_trace(model)
    plan = fx_partition.plan(traced, x, cache_bytes="40KiB")
    cut = fx_partition.split(traced, x, plan=Plan.from_json(plan.to_json()))
    assert cut.plan == plan and same(cut(x), model(x))
    other = torch.fx.symbolic_trace(layers(5))
    with pytest.raises(PlanMismatchError, match=rf"another graph.*{plan.graph}.*fx_partition\.plan"):
        fx_partition.split(other, x, plan=plan)
    with pytest.raises(ValueError, match="cache_bytes="):
        fx_partition.split(traced, x)
    with pytest.raises(ValueError, match="plan="):
        fx_partition.split(traced, x, cache_bytes="40KiB", plan=plan)


def test_the_model_and_its_graph_are_not_changed() -> None:
    traced = torch.fx.symbolic_trace(layers())
    code, children = traced.code, [name for name, _ in traced.named_children()]
    metas = [dict(node.meta) for node in traced.graph.nodes]
    fx_partition.split(traced, torch.randn(4, WIDTH), cache_bytes="40KiB")
    assert traced.code == code and [name for name, _ in traced.named_children()] == children
    assert [dict(node.meta) for node in traced.graph.nodes] == metas


def test_a_part_of_the_model_keeps_a_mode_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.5))
    traced = torch.fx.symbolic_trace(model)
    traced.train()
    frozen = traced.get_submodule("1")
    frozen.eval()
    x = torch.randn(4, 8)
    cut = fx_partition.split(traced, x, cache_bytes="600B")
    assert cut.training and traced.training and not frozen.training
    before = frozen.state_dict()["running_mean"].clone()
    torch.manual_seed(0)
    result = cut(x)
    torch.manual_seed(0)
    assert same(result, traced(x)) and torch.equal(frozen.state_dict()["running_mean"], before)
    cut.eval()
    assert not traced.get_submodule("3").training


def test_a_weight_of_two_names_keeps_both_in_the_state_dict() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(8, 8))
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.first) @ self.second

    traced = torch.fx.symbolic_trace(Tied())
    traced.register_parameter("second", traced.first)  # the tracer keeps one name only
    x = torch.randn(2, 8)
    for options in ({}, {"oversize": "slice"}):
        cut = fx_partition.split(traced, x, cache_bytes="400B", **options)
        assert cut.state_dict().keys() == traced.state_dict().keys() == {"first", "second"}
        assert cut.first is cut.second is traced.first
        torch.testing.assert_close(copy.deepcopy(cut)(x), traced(x))
