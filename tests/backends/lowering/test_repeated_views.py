"""Stages write memory through views, also where vmap gives values without their own storage."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fx_partition import PartitionWarning
from fx_partition.report.compiled_plans import compiled_graphs

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
    far = F.linear(F.linear(y.cos(), w + 1).sin(), w - 1)
    read = part.sin()
    y.add_(far)
    return read, y * 2


def takes_a_view_and_a_view_of_it(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    y = F.linear(x, w)
    view = y.movedim(0, -1)
    part = view[1:]
    far = F.linear(F.linear(part.cos(), w + 1).sin(), w - 1)
    read = F.linear(far, w).add_(part)  # an operand of a write, before the view itself is read
    both = view * read.sum()
    y.add_(1)
    return far, read, both


def compiled_right(model: Callable[[Tensor, Tensor], tuple[Tensor, ...]], budget: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(WIDTH, WIDTH, generator=generator) for _ in range(2))
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": budget}, fullgraph=True)
    for found, expected in zip(compiled(x, w), model(x, w), strict=True):
        torch.testing.assert_close(found, expected)
    return compiled_graphs(compiled)[-1].plan


def test_a_graph_that_writes_under_vmap_is_cut() -> None:
    assert compiled_right(writes_under_vmap, 1).num_partitions >= 3


def test_a_stage_that_takes_a_view_and_a_view_of_it_makes_both_in_order() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        assert compiled_right(takes_a_view_and_a_view_of_it, 1000).num_partitions >= 2


def test_a_view_that_only_vmap_can_make_is_not_made_in_another_stage() -> None:
    """Where it is read together with a write to its memory, no stage can take both: the graph runs whole."""
    with pytest.warns(PartitionWarning, match="views of one memory that another partition writes"):
        compiled_right(writes_behind_a_view_of_vmap, 1000)
