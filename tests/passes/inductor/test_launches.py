"""The kernels that a step begins add up to those that inductor's scheduler has after fusion."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_fused_footprint import traced
from torch import Tensor

from fx_partition.backends.lowering.torch_internals import compile_part
from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.inductor.fused_footprint import compiled

WIDTH = 64


def scheduled(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Return the kernels of inductor's scheduler after fusion."""
    captured, _ = traced(function, *inputs)
    found: list[int] = []

    def count(nodes: list[Any]) -> list[Any]:
        found.append(sum(not node.is_template() and type(node).__name__ != "NopKernelSchedulerNode" for node in nodes))
        return nodes

    fakes = [value_of(node) for node in captured.gm.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        compile_part(copy.deepcopy(captured.gm), fakes, {"_post_fusion_custom_pass": count, "fx_graph_cache": False})
    return sum(found)


def begun(function: Callable[..., Any], *inputs: Tensor, starts: Sequence[int] = (0,)) -> list[int]:
    """Return the kernels that each step begins."""
    captured, _ = traced(function, *inputs)
    return compiled(captured, analyze_memory(captured), starts)[1]


def rms(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def gated(x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    y = rms(x, norm)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


def matrix(*shape: int) -> Tensor:
    return torch.randn(*shape)


X = matrix(8, WIDTH)
SQUARE = matrix(WIDTH, WIDTH)
CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], int]] = {
    "a chain of pointwise operators": (lambda x: (x * 2 + 1).tanh().relu(), (X,), 1),
    "a product and what follows": (lambda x, w: F.gelu(F.linear(x, w)) * 2, (X, SQUARE), 2),
    "a norm that is written out": (rms, (X, matrix(WIDTH)), 1),
    "layer_norm": (lambda x: F.layer_norm(x, (WIDTH,)), (X,), 1),
    "softmax": (lambda x: F.softmax(x * 2, -1) + 1, (X,), 1),
    "siblings of one source": (lambda x: (x + 1, x * 2), (X,), 1),
    "a gated block": (gated, (X[:, None], matrix(WIDTH), SQUARE, SQUARE, SQUARE), 6),
    "a state that is written": (lambda x, cache: (cache.copy_(x), x.tanh())[1], (X, matrix(8, WIDTH)), 1),
    "a concatenation": (lambda x: torch.cat([x * 2, x + 1], 1).relu(), (X,), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_as_many_as_inductor_schedules(name: str) -> None:
    function, inputs, kernels = CASES[name]
    assert sum(begun(function, *inputs)) == scheduled(function, *inputs) == kernels


def test_a_boundary_takes_a_kernel_apart() -> None:
    def chain(x: Tensor) -> Tensor:
        return (x * 2).tanh().relu()

    assert sum(begun(chain, X)) == 1
    assert begun(chain, X, starts=(0, 1, 2)) == [1, 1, 1]
