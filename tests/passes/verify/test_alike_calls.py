"""Calls that are alike do the same to memory; only the first of them runs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from test_reading import compare
from torch import nn
from torch.nn import functional as F

from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.verify.alike_calls import Calls
from fx_partition.passes.verify.reading import read_graph
from fx_partition.passes.verify.runs import Held


class Twice(nn.Module):
    """Calls that look alike: on tensors that share memory or do not, on results of others, and on what is written."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b = x * 2, y * 2
        sums = [a + b, a + a, b + b, b + a]
        views = [a.t(), b.t()]
        turned = [view.contiguous() for view in views] + [a.contiguous(), b.contiguous()]
        drawn = [F.dropout(s, 0.5, training=True) for s in sums[:2]] + [F.dropout(s, 0.0, training=True) for s in sums]
        chosen = [torch.nonzero(s) for s in sums[:2]]
        written = [(s * 3).mul_(2) + t for s, t in zip(sums, sums, strict=True)]
        pairs = [torch.var_mean(s) for s in sums]
        return *turned, *drawn, *chosen, *written, *views, *(mean for _, mean in pairs)


def test_calls_that_look_alike() -> None:
    inputs = torch.randn(4, 4), torch.randn(4, 4)
    gm = torch.fx.symbolic_trace(Twice())
    compare(capture(gm, inputs))
    compare(capture(torch.export.export(Twice(), inputs, strict=False)))


def test_calls_that_are_alike_run_once() -> None:
    runs = 0

    def step(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return x * weight

    graph, root = torch.fx.Graph(), nn.Module()
    nodes = [graph.placeholder("x")]
    for i, size in enumerate([8, 8, 8, 1, 8, 1]):
        root.register_parameter(f"w{i}", nn.Parameter(torch.randn(size)))
        nodes.append(graph.call_function(step, (nodes[-1], graph.get_attr(f"w{i}"))))
    graph.output(nodes[-1])
    captured = capture(torch.fx.GraphModule(root, graph), [torch.randn(8)])
    compare(captured)
    before = runs
    read_graph(captured)
    # One run for each size of the weight, in which its memory is measured and its writes are seen.
    assert runs - before == 2


class Graph:
    """Nodes whose results are tensors, each in memory of its own unless another is given."""

    def __init__(self) -> None:
        self.graph = torch.fx.Graph()
        self.env: dict[torch.fx.Node, Any] = {}
        self.values: dict[torch.fx.Node, Any] = {}
        self.calls = Calls(self.env, self.values)

    def add(self, value: Any, memory: int | None = None) -> torch.fx.Node:
        node = self.graph.placeholder(f"x{len(self.env)}")
        self.values[node] = value
        number = len(self.env) if memory is None else memory
        held = Held(number, like=value) if isinstance(value, torch.Tensor) else value
        self.env[node] = held
        return node

    def key(self, *args: Any, modes: Any = (), target: Any = operator.add, **kwargs: Any) -> Any:
        call = self.calls.of(self.graph.call_function(target, args, kwargs), modes)
        return None if call is None else call.key


def test_a_key_has_all_that_an_effect_depends_on() -> None:
    graph = Graph()
    x, y = graph.add(torch.empty(4)), graph.add(torch.empty(4))
    z, turned = graph.add(torch.empty(2, 3)), graph.add(torch.empty(3, 2).t())
    assert graph.key(x, y) == graph.key(y, x) != graph.key(x, x)
    assert graph.key(x, x) == graph.key(y, y)
    assert graph.key(x, dim=[z, 1]) == graph.key(y, dim=[z, 1])
    keys = [
        graph.key(x), graph.key(x, y), graph.key(x, z), graph.key(x, turned), graph.key([x, z]), graph.key((x, z)),
        graph.key(x, 1), graph.key(x, 1.0), graph.key(x, True), graph.key(x, None), graph.key(x, (1, None)),
        graph.key(x, dim=1), graph.key(x, other=1), graph.key(x, {"dim": 1}), graph.key(x, modes=("bfloat16",)),
        graph.key(x, target=operator.mul), graph.key(graph.add(torch.empty(4, dtype=torch.float16))),
        graph.key(graph.add(nn.Parameter(torch.empty(4)))),
    ]  # fmt: skip
    assert None not in keys and len(set(keys)) == len(keys)


def test_operands_are_counted_once_and_in_the_order_of_the_arguments() -> None:
    graph = Graph()
    x, y = graph.add(torch.empty(4)), graph.add(torch.empty(4))
    call = graph.calls.of(graph.graph.call_function(operator.add, ([y, x], y), {"out": x}), ())
    assert call is not None and call.operands == (graph.env[y], graph.env[x])


def test_calls_whose_effect_may_depend_on_more_are_alike_none() -> None:
    graph = Graph()
    x = graph.add(torch.empty(4))
    view = graph.add(torch.empty(4), memory=graph.env[x].memory)
    assert graph.key(x, view) is None
    assert graph.key(x, slice(0, 2)) is None  # slices do not hash
    assert graph.key(graph.add(torch.empty(4).to_sparse())) is None
    assert graph.calls.of(graph.graph.call_module("layer", (x,)), ()) is None


def test_containers_are_looked_into() -> None:
    graph = Graph()
    first, second = torch.empty(4), torch.empty(2)
    pair = graph.add([first, second])
    graph.env[pair] = [Held(7, like=first), Held(8, like=second)]
    call = graph.calls.of(graph.graph.call_function(operator.add, (pair,)), ())
    assert call is not None and call.operands == tuple(graph.env[pair])


def test_a_layout_that_a_call_has_changed_is_looked_at_again() -> None:
    graph = Graph()
    x, other = graph.add(torch.empty(2, 3)), graph.add(torch.empty(2, 3))
    held = graph.env[x]
    held.tensor, held.like = torch.empty(2, 3), None
    assert graph.key(x) == graph.key(other)
    held.tensor.t_()
    graph.calls.forget([held.tensor])
    assert graph.key(x) != graph.key(other)
