"""Two readings of one graph, by code that shares only the measure of an operator, say the same of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import test_check_order as orders
import torch
from models import SUBJECTS
from torch import nn
from zoo.captured import captured_family

from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.symbolic_sizes import evaluate
from fx_partition.passes.constraints.atoms import needed_groups
from fx_partition.passes.constraints.dependencies import all_predecessors
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.verify.groups import find_groups
from fx_partition.passes.verify.order import find_needs
from fx_partition.passes.verify.reading import read_graph
from fx_partition.passes.verify.runs import Reading


def told(facts: GraphMemory, numbers: Any) -> list[Any]:
    """What the planner says of each step, in numbers and in names."""
    values = [(v.name, evaluate(v.bytes, numbers), v.made_at, v.returned) for v in facts.values]
    return [
        (
            step.node, step.path, step.unknown, step.draws, max(evaluate(size, numbers) for size in step.workspace),
            sorted(values[v] for v in step.values),
            sorted((evaluate(size, numbers), evaluate(facts.weight_bytes[w], numbers), w in facts.state)
                   for w, size in step.weights.items()),
            sorted(values[v] for v in step.writes), len(step.weight_writes),
            sorted(values[v] for v in step.reshapes), len(step.weight_reshapes),
        )
        for step in facts.steps
    ]  # fmt: skip


def read(reading: Reading, numbers: Any) -> list[Any]:
    """What the checker says of each run, in the same form."""
    memories = reading.memories
    values = {
        i: (m.name, evaluate(m.bytes, numbers), m.made_at, m.is_returned)
        for i, m in enumerate(memories) if m.is_activation
    }  # fmt: skip
    return [
        (
            run.node.name, run.path, run.unknown, run.draws, max(evaluate(size, numbers) for size in run.workspace),
            sorted(values[m] for m in run.touches if m in values),
            sorted((evaluate(size, numbers), evaluate(memories[m].bytes, numbers), memories[m].is_state)
                   for m, size in run.touches.items() if m not in values),
            sorted(values[m] for m in run.writes if m in values), len(run.writes - values.keys()),
            sorted(values[m] for m in run.reshapes if m in values), len(run.reshapes - values.keys()),
        )
        for run in reading.runs
    ]  # fmt: skip


def compare(captured: CapturedGraph) -> None:
    facts, reading = analyze_memory(captured), read_graph(captured)
    own = facts.symbols.bind()
    for numbers in (own, {symbol: 3 * number + 1 for symbol, number in own.items()}):
        for mine, its in zip(read(reading, numbers), told(facts, numbers), strict=True):
            assert mine == its
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    edges = {(before, t) for t, found in all_predecessors(facts, nodes) for before in found}
    assert edges == set(find_needs(reading).edges())
    groups = {frozenset(group.members) for group in needed_groups(captured, facts) if len(group.members) > 1}
    assert groups == {frozenset(group.members) for group in find_groups(reading) if len(set(group.members)) > 1}


@pytest.mark.parametrize("name", ["gpt2", "resnet18", "mixtral", "lstm", "mobilenetv2", "wav2vec2"])
def test_exported_models(name: str) -> None:
    compare(captured_family(name)[0])


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_models_whose_plans_are_edited(name: str) -> None:
    compare(capture(SUBJECTS[name][0]()))


class Accumulates(nn.Module):
    """An output that is written part by part and handed on, a view that sees later writes, and changed metadata."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(orders.WIDTH, orders.WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.zeros_like(x)
        for i, layer in enumerate(self.body):
            out.index_add_(0, torch.tensor([i]), layer(x[i : i + 1]))
        row = out[0]
        rows = torch.empty(3, orders.WIDTH)
        rows[0] = row
        rows[1] = torch.relu(row)
        rows[2] = out[1]
        turned = (x * 2).t_()
        turned.mul_(2)
        return out + 1, rows.sum(0) + turned.sum()


DYNAMO: dict[str, Callable[[], nn.Module]] = {**orders.MODELS, "accumulates": Accumulates}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", DYNAMO)
def test_graphs_of_dynamo_with_writes_modes_and_random_numbers(name: str, dynamic: bool) -> None:
    found: list[torch.fx.GraphModule] = []

    def keep(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(gm)
        return gm.forward

    torch.compile(copy.deepcopy(DYNAMO[name]()), backend=keep, dynamic=dynamic)(orders.X)
    assert found
    for gm in found:
        compare(capture(gm))
