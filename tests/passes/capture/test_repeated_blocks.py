"""Blocks that repeat are found by what a tracer can tell apart."""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fx_partition.passes.capture.repeated_blocks import find_runs


class Activation(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.act = functools.partial(F.gelu, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def test_partial_functions_are_alike_with_the_same_options_alone() -> None:
    (run,) = find_runs(nn.Sequential(*(Activation(approximate="tanh") for _ in range(5))))
    assert len(run.blocks) == 5 and not run.watched
    others = [Activation(approximate="tanh" if i % 2 else "none") for i in range(4)]
    (run,) = find_runs(nn.Sequential(*others))
    assert run.watched == {Activation: frozenset({"act"})}
