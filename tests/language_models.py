"""Small language models for the tests of other engines: residual layers in a list between an embedding and a head."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

import fx_partition
from fx_partition import Plan

WIDTH, WORDS = 32, 64


class Layer(nn.Module):
    """A residual layer; it does what its ``unused`` parameter and its buffer without a reader do not change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.unused = nn.Parameter(torch.zeros(3))
        self.register_buffer("unread", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual: torch.Tensor = self.down(self.up(self.norm(x)).relu())
        return x + residual


class Language(nn.Module):
    """An embedding, layers, a norm and a head. As torchtitan asks, it runs without the modules that are None."""

    embed: Any
    layers: Any
    norm: Any
    head: Any

    def __init__(self, layers: int = 6, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.embed is None else self.embed(x)
        for layer in self.layers:
            x = layer(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.head is None else self.head(x)


def words() -> torch.Tensor:
    return torch.arange(16).reshape(2, 8)


def whole_layers(model: nn.Module, devices: Any, **options: Any) -> Plan:
    """The plan of a language model with its layers whole."""
    layers = [path for path, module in model.named_modules() if isinstance(module, Layer)]
    together = [*layers, *options.pop("together", ())]
    return fx_partition.plan(model, words(), devices=devices, keep_together=together, **options)


@cache
def planned(layers: int, devices: int) -> Plan:
    """The plan of a model of so many layers, with its layers whole, on so many devices."""
    return whole_layers(Language(layers), devices)
