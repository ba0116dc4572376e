"""The operator that is called decides whether its first argument is written, not the end of its name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fx_partition
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.in_place_ops import is_in_place
from fx_partition.passes.footprint.analyze import analyze_memory

WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "relu_": lambda a, b: a.relu_(),
    "torch.relu_": lambda a, b: torch.relu_(a),
    "+=": lambda a, b: a.__iadd__(b),
    "&=": lambda a, b: a.__iand__(b),
}
MAKES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "__and__": lambda a, b: a.__and__(b),
    "+": lambda a, b: a + b,
    "@": lambda a, b: a @ b,
}


def last_call(function: Callable[[Tensor, Tensor], Any]) -> torch.fx.Node:
    return list(torch.fx.symbolic_trace(function).graph.nodes)[-2]


@pytest.mark.parametrize("name", WRITES)
def test_in_place(name: str) -> None:
    assert is_in_place(last_call(WRITES[name]))


@pytest.mark.parametrize("name", MAKES)
def test_not_in_place(name: str) -> None:
    assert not is_in_place(last_call(MAKES[name]))


@pytest.mark.parametrize(
    "combine", [operator.and_, *(pytest.param(f, marks=pytest.mark.slow) for f in (operator.or_, operator.xor))]
)
def test_a_truth_that_was_combined_is_as_it_was(combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The backend read ``positive & small`` wherever ``positive`` was read after it."""

    def masks(x: Tensor) -> tuple[Tensor, ...]:
        positive, small = x > 0, x < 1
        chosen = torch.where(combine(positive, small), x, -x).softmax(-1)
        return chosen @ chosen.T, (positive | small).float().exp(), positive.float() * 2, small.sum()

    x = torch.randn(16, 16)
    compiled = torch.compile(masks, backend="l2partition", options={"cache_bytes": 2048})
    for found, expected in zip(compiled(x), masks(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_plus_equals_under_vmap_stays_behind_what_reads_before_it() -> None:
    def row(x: Tensor) -> Tensor:
        x += 1
        return x * 2

    def model(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x * 3
        before = y.cos()
        return torch.vmap(row)(y), before, y.sin()

    gms: list[torch.fx.GraphModule] = []

    def keep(gm: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        gms.append(gm)
        return gm.forward

    x = torch.randn(4, 8)
    expected = torch.compile(model, backend=keep)(x)
    (captured,) = map(capture, gms)
    memory = analyze_memory(captured)
    written = {memory.values[value].name for step in memory.steps for value in step.writes}
    assert written == {"y"}
    cut = fx_partition.split(gms[0], (x,), cache_bytes=2 * x.nbytes)
    for found, wanted in zip(cut(x), expected, strict=True):
        assert torch.equal(found, wanted)
