"""Views of memory that a stage writes, where some values of the stage have no storage of their own: those of vmap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fx_partition.passes.live import live_graphs

WIDTH = 8


def plus_one(row: Tensor) -> Tensor:
    row += 1
    return row * 2


def writes_under_vmap(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    y = F.linear(x, w)
    z = torch.vmap(plus_one)(y.relu())
    return F.linear(z, w), F.linear(z.cos(), w).sin()


def writes_behind_a_view_of_vmap(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    y = F.linear(x, w)
    part = torch.vmap(lambda row: row[1:])(y)
    before = torch.tanh(part.cos() @ part.T.sin())
    y.add_(F.linear(y, w))
    return F.linear(y, w), part.sin(), before


@pytest.mark.parametrize("model", [writes_under_vmap, writes_behind_a_view_of_vmap])
def test_a_graph_with_vmap_and_writes_is_cut(model: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(WIDTH, WIDTH, generator=generator) for _ in range(2))
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": 1}, fullgraph=True)
    for found, expected in zip(compiled(x, w), model(x, w), strict=True):
        torch.testing.assert_close(found, expected)
    assert live_graphs(compiled)[-1].plan.num_partitions >= 3
