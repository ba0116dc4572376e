"""Random graphs that run: shared weights, views, slices, writes in place, several results."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTH = 8
ROWS = 3
IN_PLACE = ("relu_", "mul_")


class Builder:
    """Writes one graph, node by node; every tensor in ``pool`` is [ROWS, WIDTH] (any batch)."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = torch.fx.Graph()
        self.pool: list[torch.fx.Node] = []
        self.weights: list[str] = []

    def weight(self, shape: tuple[int, ...]) -> torch.fx.Node:
        name = f"weight_{len(self.weights)}"
        generator = torch.Generator().manual_seed(len(self.weights))
        self.root.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator) / 3, False))
        self.weights.append(name)
        return self.graph.get_attr(name)

    def module(self) -> torch.fx.GraphModule:
        return torch.fx.GraphModule(self.root, self.graph)


OPS = [
    "linear", "tied", "turned", "slices", "half", "relu", "add", "cat", "chunk", "in_place", "view", "embedding",
    "in_place_view",
]  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> tuple[torch.fx.GraphModule, tuple[Tensor, ...]]:
    b = Builder()
    g = b.graph
    x, ids = g.placeholder("x"), g.placeholder("ids")
    b.pool = [x]
    made: list[torch.fx.Node] = []  # activations, which may be written in place
    narrow: set[torch.fx.Node] = set()  # activations of fewer columns, which may be written as well
    square: list[str] = []
    table = None

    def pick() -> torch.fx.Node:
        return b.pool[draw(st.integers(max(0, len(b.pool) - 4), len(b.pool) - 1))]

    for op in draw(st.lists(st.sampled_from(OPS), min_size=2, max_size=12)):
        match op:
            case "linear":
                w = b.weight((WIDTH, WIDTH))
                square.append(str(w.target))
                new = g.call_function(F.linear, (pick(), w))
            case "tied" | "turned" if square:
                w = g.get_attr(draw(st.sampled_from(square)))
                w = g.call_method("t", (w,)) if op == "turned" else w
                new = g.call_function(torch.matmul, (pick(), w))
            case "slices":
                w = b.weight((WIDTH, WIDTH))
                square.append(str(w.target))
                cut, x_in = draw(st.integers(1, WIDTH - 1)), pick()
                rows = [g.call_function(operator.getitem, (w, s)) for s in (slice(0, cut), slice(cut, None))]
                parts = [g.call_function(F.linear, (x_in, part)) for part in rows]
                made += parts
                narrow |= {*parts}
                new = g.call_function(torch.cat, (parts,), {"dim": 1})
            case "half" if square:
                w = g.get_attr(draw(st.sampled_from(square)))
                halves = g.call_method("chunk", (w, 2))
                parts = [g.call_function(operator.getitem, (halves, i)) for i in (0, 1)]
                first = g.call_function(torch.matmul, (pick(), g.call_method("t", (parts[0],))))
                new = g.call_function(torch.addmm, (g.call_function(torch.cat, ([first] * 2, 1)), first, parts[1]))
            case "add":
                new = g.call_function(torch.add, (pick(), pick()))
            case "cat":
                joined = g.call_function(torch.cat, ([pick(), pick()],), {"dim": 1})
                new = g.call_function(F.linear, (joined, b.weight((WIDTH, 2 * WIDTH))))
            case "chunk":
                pieces = g.call_function(torch.chunk, (pick(), 2, 1))
                halves = [g.call_function(operator.getitem, (pieces, i)) for i in range(2)]
                new = g.call_function(torch.cat, (halves[::-1],), {"dim": 1})
            case "in_place" if made:
                target = draw(st.sampled_from(made[-3:]))
                kind = draw(st.sampled_from(IN_PLACE))
                new = g.call_method(kind, (target,) if kind == "relu_" else (target, 2.0))
                if target in narrow:
                    continue
            case "in_place_view" if made:
                flat = g.call_method("view", (draw(st.sampled_from(made[-3:])), -1))
                g.call_method("mul_", (flat, 0.5))
                continue
            case "view":
                flat = g.call_method("reshape", (pick(), -1))
                new = g.call_method("view", (flat, -1, WIDTH))
            case "embedding":
                table = table or str(b.weight((16, WIDTH)).target)
                new = g.call_function(F.embedding, (ids, g.get_attr(table)))
            case _:
                new = g.call_function(torch.relu, (pick(),))
        b.pool.append(new)
        if op not in ("in_place", "view"):
            made.append(new)
    results = draw(st.lists(st.sampled_from(b.pool[1:]), min_size=1, max_size=2)) if len(b.pool) > 1 else [x]
    g.output((*results, b.pool[-1]))
    g.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or n.target in IN_PLACE)
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(ROWS, WIDTH, generator=generator), torch.randint(16, (ROWS,), generator=generator))
    return b.module(), inputs
