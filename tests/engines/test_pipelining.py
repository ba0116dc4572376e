"""torch.distributed.pipelining makes the plan's partitions of its split points."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import torch.fx
from language_models import WIDTH, Language, whole_layers, words
from torch import nn
from torch.distributed.pipelining import SplitPoint, pipeline

import fx_partition
from fx_partition import PartitionError, Plan

NAME = "torch.distributed.pipelining"


def operators(module: nn.Module) -> Counter[Any]:
    """The operators of a stage, whose modules are graphs within graphs."""
    found: Counter[Any] = Counter()
    for inner in module.modules():
        graph = getattr(inner, "graph", None)
        if isinstance(graph, torch.fx.Graph):
            found.update(node.target for node in graph.nodes if node.op == "call_function")
    return found


def check_stages(model: nn.Module, args: tuple[Any, ...], plan: Plan) -> None:
    points = plan.to(NAME)
    pipe = pipeline(copy.deepcopy(model), args, split_spec=points)
    assert pipe.num_stages == plan.num_partitions == len(points) + 1
    nodes = {node.name: node.target for node in torch.export.export(model, args).module(check_guards=False).graph.nodes}
    x: Any = args
    for stage, partition in enumerate(plan.partitions):
        module = pipe.get_stage_module(stage)
        wanted = Counter(nodes[name] for name in partition.nodes)
        found = operators(module)
        assert {target: found[target] for target in wanted} == wanted
        x = module(*x)
        x = x if isinstance(x, tuple) else (x,)
    assert torch.equal(x[0], model(*args))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("devices", [2, 3])
def test_stages_are_the_partitions(tied: bool, devices: int) -> None:
    model = Language(tied=tied).eval()
    check_stages(model, (words(),), whole_layers(model, devices))


def test_fit_has_split_points_too() -> None:
    model = Language().eval()
    answer = fx_partition.fit(model, words(), devices=3)
    firsts = [device.modules[0] for device in answer.devices[1:]]
    assert answer.to(NAME) == dict.fromkeys(firsts, SplitPoint.BEGINNING)


class Flat(nn.Module):
    """Steps of its own stand behind its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        out: torch.Tensor = self.c(self.b(x * 2 + 1).tanh())
        return out


def test_a_boundary_behind_a_module_splits_at_its_end() -> None:
    model, x = Flat().eval(), torch.zeros(2, WIDTH)
    plan = fx_partition.plan(model, x, devices=3, keep_together=[("mul", "add", "linear_1")], order="trace")
    assert plan.to(NAME) == {"a": SplitPoint.END, "c": SplitPoint.BEGINNING}
    check_stages(model, (x,), plan)


class Twice(nn.Module):
    """Calls one module twice, without a step between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.norm(self.norm(self.a(x))))
        return out


def test_no_split_point_is_at_a_module_that_is_called_twice() -> None:
    model, x = Twice().eval(), torch.zeros(2, WIDTH)
    plan = fx_partition.plan(model, x, devices=3, keep_together=[("layer_norm", "layer_norm_1")], order="trace")
    assert plan.modules.called_again == ("norm",)
    assert plan.to(NAME) == {"a": SplitPoint.END, "b": SplitPoint.BEGINNING}
    check_stages(model, (x,), plan)


def test_a_boundary_between_a_modules_own_steps_is_refused() -> None:
    model, x = Flat().eval(), torch.zeros(2, WIDTH)
    plan = fx_partition.plan(model, x, devices=2, keep_together=[("linear", "mul"), ("add", "linear_1")], order="trace")
    with pytest.raises(PartitionError, match="cuts the model itself"):
        plan.to(NAME)


def test_a_plan_in_another_order_is_refused() -> None:
    """The stages of the pipeline would be others, as it splits the trace."""
    from dataclasses import replace

    plan = whole_layers(Language(), 2)
    runs = plan.modules.runs
    moved = replace(plan.modules, runs=(runs[-1], *runs[:-1]))
    with pytest.raises(PartitionError, match=r"'head'|'embed'.*order=\"trace\""):
        replace(plan, modules=moved).to(NAME)
