"""Dependencies between atoms; graphs that run in another order give equal results bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.constraints.atoms import Atoms, find_atoms
from fx_partition.passes.constraints.dependencies import atom_predecessors, step_predecessors
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.ordering.search import search_order
from fx_partition.passes.partitioner.build_chain import lay_out
from fx_partition.passes.partitioner.contraction import contract
from fx_partition.passes.partitioner.dp import dp
from fx_partition.passes.partitioner.permute import permuted
from fx_partition.passes.plan.make_plan import Request, make_plan
from fx_partition.passes.split.extract import split_graph

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def prepare(function: Any, *inputs: Tensor) -> tuple[CapturedGraph, GraphMemory, Atoms, list[list[int]]]:
    root = function if isinstance(function, nn.Module) else nn.Module()
    gm = torch.fx.GraphModule(root, torch.fx.Tracer().trace(function))
    captured = capture(gm, inputs)
    memory = analyze_memory(captured)
    atoms = find_atoms(captured, memory)
    memory = memory.reordered(atoms.order)
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    return captured, memory, atoms, atom_predecessors(memory, nodes, atoms.starts)


def needs(function: Callable[..., Any], *inputs: Tensor) -> dict[str, set[str]]:
    """Return, by the first node of each atom, all the atoms that must run before it, directly or not."""
    _, memory, atoms, predecessors = prepare(function, *inputs)
    names = [memory.steps[start].node for start in atoms.starts[:-1]]
    found: list[set[int]] = []
    for direct in predecessors:
        found.append({*direct, *(q for p in direct for q in found[p])})
    return {name: {names[p] for p in before} for name, before in zip(names, found, strict=True)}


def test_data_comes_before_who_reads_it_and_branches_are_free() -> None:
    assert needs(lambda x: (x + 1) - (x * 2), X) == {"add": set(), "mul": set(), "sub": {"add", "mul"}}


def test_readers_of_an_input_come_before_its_writer_and_later_readers_after() -> None:
    def function(x: Tensor, cache: Tensor) -> Tensor:
        y = x + 1
        before = y * 3
        y.relu_()
        return before + y.neg()

    found = needs(function, X, X)
    assert found["neg"] == {"add"}  # add .. relu_ is one atom
    assert "neg" not in found["add"]


def test_a_write_comes_after_earlier_reads_and_before_later_ones() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        before = y * 3
        y.relu_()
        return before + y.neg()

    captured, memory, _, _ = prepare(function, X)
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    found = step_predecessors(memory, nodes, range(len(memory.steps)))
    place = {step.node: t for t, step in enumerate(memory.steps)}
    assert found[place["relu_"]] == [place["add"], place["mul"]]
    assert place["relu_"] in found[place["neg"]]


def test_random_numbers_keep_their_order() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.rand_like(x) + x.neg() + F.dropout(x.abs(), 0.5, True)

    found = needs(function, X)
    assert "rand_like" in found["dropout"] and "rand_like" not in found["neg"]


@pytest.mark.parametrize(
    "draw",
    [
        F.gumbel_softmax,
        lambda x: F.fractional_max_pool2d(x.view(1, 4, 8), 2, output_size=(2, 2)),
        lambda x: torch.binomial(x.abs().round(), x.sigmoid()),
        lambda x: (x * 1).cauchy_(),
        lambda x: torch._standard_gamma(x.abs()),
    ],
)
def test_whatever_takes_random_numbers_keeps_its_order(draw: Callable[[Tensor], Tensor]) -> None:
    found = needs(lambda x: (draw(x.clone()).sum(), torch.rand_like(x)), X)
    assert len(found["rand_like"]) >= 2, "what draws, and the clone that it takes"


def test_a_dropout_in_eval_mode_draws_nothing() -> None:
    found = needs(lambda x: F.dropout(x + 1, 0.5, False) + F.dropout(x * 2, 0.5, training=False), X)
    assert found["dropout_1"] == {"mul"}


def test_attention_without_dropout_draws_nothing() -> None:
    q = torch.randn(1, 1, 4, 8)

    def function(p: float) -> Callable[[Tensor], Tensor]:
        attend = F.scaled_dot_product_attention
        return lambda x: attend(x, x, x, dropout_p=p) + attend(x, x, x * 2, None, p)

    name = "scaled_dot_product_attention"
    assert needs(function(0.0), q)[f"{name}_1"] == {"mul"}
    assert needs(function(0.5), q)[f"{name}_1"] == {"mul", name}


def test_nothing_moves_across_a_mode() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    add = graph.call_function(torch.add, (x, 1))
    graph.call_function(torch._C._set_grad_enabled, (False,))
    mul = graph.call_function(torch.mul, (x, 2))
    graph.call_function(torch._C._set_grad_enabled, (True,))
    neg = graph.call_function(torch.neg, (x,))
    graph.output((add, mul, neg))
    captured = capture(torch.fx.GraphModule(nn.Module(), graph), (X,))
    memory = analyze_memory(captured)
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    names = [step.node for step in memory.steps]
    found = atom_predecessors(memory, nodes, range(len(names) + 1))
    off, on = (i for i, name in enumerate(names) if "grad" in name)
    assert found[off] == [names.index("add")]
    assert found[names.index("mul")] == [off]
    assert found[on] == [off, names.index("mul")]
    assert found[names.index("neg")] == [on]


class Branches(nn.Module):
    """Two towers that take turns, each with one weight for all its layers."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        a, b = x + 1, x * 2
        for _ in range(self.depth):
            a = torch.relu(F.linear(a, self.left.weight, self.left.bias))
            b = torch.tanh(F.linear(b, self.right.weight, self.right.bias))
            b = F.dropout(b, 0.5, True)
            b.mul_(2)
        return a + b


def split_in_order(model: nn.Module, atom_order: list[int] | None, budget: int, x: Tensor) -> tuple[Any, list[int]]:
    """Return the split module of a model over an order of its atoms, or over the best one found."""
    captured, memory, atoms, predecessors = prepare(model, x)
    chain = lay_out(memory, atoms, memory.symbols.bind(None))
    if atom_order is None:
        atom_order, boundaries, _ = search_order(chain, predecessors, budget, lambda c: dp(c, budget))
    else:
        boundaries = dp(permuted(chain, atom_order), budget)
    order = [t for a in atom_order for t in range(atoms.starts[a], atoms.starts[a + 1])]
    memory = memory.reordered(order)
    starts = permuted(chain, atom_order).atom_start.tolist()
    plan = make_plan(captured, analyze_memory(captured), Request(budget))
    template = plan.partitions[0]
    partitions = tuple(
        replace(template, index=i, nodes=tuple(step.node for step in memory.steps[starts[a] : starts[b]]))
        for i, (a, b) in enumerate(pairwise(boundaries))
    )
    return split_graph(captured, replace(plan, partitions=partitions)), boundaries


def run(model: Any, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        result: Tensor = model(x)
    return result


def test_a_reordered_model_is_equal_bit_by_bit_and_needs_fewer_partitions() -> None:
    torch.manual_seed(0)
    model = Branches()
    _, memory, atoms, _ = prepare(model, X)
    chain = lay_out(memory, atoms, memory.symbols.bind(None))
    budget = max(720, int(contract(chain).alone.max()))  # one tower's weight and bias, and a few activations
    cut, boundaries = split_in_order(model, None, budget, X)
    assert len(boundaries) < len(dp(chain, budget))
    assert torch.equal(run(cut, X), run(model, X))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_order_that_precedence_allows_is_equal_bit_by_bit(data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = Branches(2)
    _, _, _, predecessors = prepare(model, X)
    order: list[int] = []
    while len(order) < len(predecessors):
        done = set(order)
        ready = [a for a, found in enumerate(predecessors) if a not in done and set(found) <= done]
        order.append(data.draw(st.sampled_from(ready)))
    cut, _ = split_in_order(model, order, 700, X)
    assert torch.equal(run(cut, X), run(model, X))


@pytest.mark.parametrize("name", ["t5", "resnet18"])
def test_graphs_of_the_zoo_are_listed_in_topological_order(name: str) -> None:
    from dags import zoo_dag

    chain, predecessors = zoo_dag(name)
    assert len(predecessors) == chain.num_atoms
    assert all(p < atom for atom, found in enumerate(predecessors) for p in found)
    assert max(map(len, predecessors)) < 16
