"""Models for the tests here, and stages that run as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fx_partition.backends.lowering import torch_internals

WIDTH = 32


def layer(width: int = WIDTH) -> nn.Linear:
    return nn.Linear(width, width, bias=False)


class Chain(nn.Module):
    """Layers with a residual, so that the input crosses to every stage."""

    def __init__(self, layers: int, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(layer(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for one in self.layers:
            y = torch.relu(one(y)) + x
        return y


def rows(count: int, width: int = WIDTH) -> Tensor:
    """A batch on the CPU."""
    return torch.randn(count, width)


class Placed(list[set[str]]):
    """For each stage that was compiled, the devices of its inputs."""


def run_stages_eagerly(monkeypatch: pytest.MonkeyPatch) -> Placed:
    """Let stages run without inductor, whose kernels have no values here."""
    placed = Placed()

    def compile_fx(gm: torch.fx.GraphModule, inputs: Sequence[Any], config_patches: Any = None) -> Any:
        placed.append({str(value.device) for value in inputs if isinstance(value, Tensor)})
        return lambda *args: gm(*args)

    monkeypatch.setattr(torch_internals, "compile_fx", compile_fx)
    return placed


def compiled(model: nn.Module, devices: Sequence[str], **options: Any) -> Any:
    """The model with its stages on devices."""
    given: dict[str, Any] = {"devices": list(devices), **options}
    return torch.compile(model, backend="l2partition", options=given)
