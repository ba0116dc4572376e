"""Regions that stay whole, above all those of torch.func, whose tensors mean nothing outside of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwd
from eager_stages import use_eager_stages
from torch import Tensor, nn

import fx_partition
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.whole_regions import inside_whole_regions, whole_regions
from fx_partition.passes.constraints.atoms import find_atoms
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.report.compiled_plans import compiled_graphs

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
Inner = Callable[[Tensor], Tensor]


def dual(f: Inner, x: Tensor) -> Tensor:
    with fwd.dual_level():
        return fwd.unpack_dual(f(fwd.make_dual(x, torch.ones_like(x)))).tangent


def vjp(f: Inner, x: Tensor) -> Tensor:
    out, back = torch.func.vjp(f, x)
    return back(torch.ones_like(out))[0]


def attention(f: Inner, x: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q = f(x).view(1, 1, 4, 8)
    mask = create_block_mask(lambda b, h, i, j: i >= j, 1, 1, 4, 4, device="cpu")
    return flex_attention(q, q, q, block_mask=mask).view(4, 8)


CALLS: dict[str, Callable[[Inner, Tensor], Tensor]] = {
    "grad": lambda f, x: torch.func.grad(lambda t: f(t).sum())(x),
    "vmap": lambda f, x: torch.func.vmap(f)(x),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda t: f(t).sum()))(x),
    "vmap of a change of metadata": lambda f, x: torch.func.vmap(lambda t: (f(t) * 2).unsqueeze_(0).sum(0))(x),
    "two in a row": lambda f, x: torch.func.vmap(f)(torch.func.vmap(f)(x).relu()),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "vjp": vjp,
    "jacrev": lambda f, x: torch.func.jacrev(f)(x[0]),
    "hessian": lambda f, x: torch.func.hessian(lambda t: f(t).sum())(x[0]),
    "dual numbers": dual,
    "associative_scan": lambda f, x: torch._higher_order_ops.associative_scan(
        lambda a, b: a + b, f(x), dim=0, combine_mode="generic"
    ),
    "flex_attention": attention,
}


class Model(nn.Module):
    """A weight is used in the region and outside of it, and through a view that is made before."""

    def __init__(self, call: Callable[[Inner, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)
        self._call = call

    def forward(self, x: Tensor) -> Tensor:
        view = self.up.weight.t()
        y = torch.relu(self.up(x))
        y = self._call(lambda t: torch.tanh(self.up(t) @ view), y)
        return self.down(y @ view)


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, None) for name in CALLS), ("vmap of grad", True), ("jvp", True)]
)
@torch.no_grad()
def test_regions_of_torch_func_equal_eager(name: str, dynamic: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)
    model = Model(CALLS[name])
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": 1}, dynamic=dynamic)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*opens a region|.*and cannot cross a boundary")
        assert torch.allclose(compiled(X), model(X), atol=1e-5)
        if dynamic:
            assert torch.allclose(compiled(X.repeat(2, 1)), model(X.repeat(2, 1)), atol=1e-5)
    assert all(graph.plan.num_partitions > 2 for graph in compiled_graphs(model))


@pytest.mark.parametrize("name", ["vmap", "two in a row", "associative_scan", "jvp"])
@torch.no_grad()
def test_exported_regions_are_bitwise_equal(name: str) -> None:
    model = Model(CALLS[name])
    program = torch.export.export(model, (X,))
    cut = fx_partition.split(program, cache_bytes=1)
    assert torch.equal(cut(X), program.module()(X)) and cut.plan.num_partitions > 3
    # Whole, and with nothing in them that was made before: the view is, and what is made in a region belongs to it.
    pieces = [_regions(child.graph) for name, child in cut.named_children() if name.startswith("partition_")]
    assert sorted(chain.from_iterable(pieces), key=min) == sorted(_regions(program.module().graph), key=min)


def _regions(graph: torch.fx.Graph) -> list[set[str]]:
    order = list(graph.nodes)
    return [
        {n.name for n in order[order.index(first) : order.index(last) + 1]} for first, last in whole_regions(order)
    ]


def test_a_region_compiled_by_inductor() -> None:
    model = Model(CALLS["vmap of grad"])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*opens a region")
        compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": "600B"})
        assert torch.allclose(compiled(X), model(X), atol=1e-5)
    assert all(graph.plan.num_partitions > 1 for graph in compiled_graphs(model))


def test_a_batched_tensor_has_the_bytes_of_its_batch() -> None:
    """And a view of one, or what is written in place, is not a new value."""

    def inner(t: Tensor) -> Tensor:
        y = t * 2
        y.view(2, 4).add_(1)
        return y

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(inner)(x.abs())

    captured = capture(Rows(), X)
    memory = analyze_memory(captured)
    sizes = {value.name: value.bytes for value in memory.values}
    assert sizes == {"x": 128, "abs_1": 128, "mul": 128}
    assert [step.unknown for step in memory.steps if step.node == "mul"] == [("operators under torch.func",)]
    atoms = find_atoms(captured, memory)
    names = [[memory.steps[t].node for t in atoms.order[a:b]] for a, b in pairwise(atoms.starts)]
    region = next(atom for atom in names if "mul" in atom)
    assert region[0] == "_vmap_increment_nesting" and region[-1] == "_vmap_decrement_nesting"
    assert ["abs_1"] in names


def test_inner_and_outer_regions_are_found_and_one_that_is_never_left() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")

    def call(name: str, *args: Any) -> torch.fx.Node:
        return graph.call_function(getattr(torch._C._functorch, name), args)

    nodes = [
        call("_vmap_increment_nesting", 4, "error"),
        call("_vmap_increment_nesting", 2, "error"),
        graph.call_function(torch.neg, (x,)),
        call("_vmap_decrement_nesting"),
        call("_vmap_decrement_nesting"),
        graph.call_function(torch.neg, (x,)),
        call("_grad_increment_nesting"),
        graph.call_function(torch.neg, (x,)),
    ]
    graph.output(nodes[-1])
    assert set(whole_regions(graph.nodes)) == {(nodes[0], nodes[4]), (nodes[1], nodes[3]), (nodes[6], nodes[7])}
    assert inside_whole_regions(graph) == dict.fromkeys(nodes[:5], nodes[0]) | dict.fromkeys(nodes[6:], nodes[6])


@pytest.mark.parametrize("through_activation", [False, True])
def test_a_view_made_without_gradients_hands_none_on(through_activation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.down(x)
            with torch.no_grad():
                view = x.t() if through_activation else self.up.weight.t()
            turned = view.t()
            y = torch.relu(x)
            return y @ turned.t() @ self.up.weight.t()[: len(x) if through_activation else 8]

    use_eager_stages(monkeypatch)
    wanted, found = Frozen(), Frozen()
    wanted(X).sum().backward()
    torch.compile(found, backend="l2partition", options={"cache_bytes": 1})(X).sum().backward()
    for a, b in zip(wanted.parameters(), found.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-5)
    assert all(graph.plan.num_partitions > 3 for graph in compiled_graphs(found))
