"""Models whose plans are edited: each has something that the others have not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fx_partition
from fx_partition import Plan

WIDTH = 8


class Layers(nn.Module):
    """A chain; its rows are symbolic."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Towers(nn.Module):
    """Two towers that take turns, each with one weight for all its layers: another order needs fewer partitions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x + 1, x * 2
        for _ in range(3):
            a, b = torch.relu(self.left(a)), torch.tanh(self.right(b))
        return a + b


class Caches(nn.Module):
    """State that is passed in and state of its own, an activation that is written, and a view of a part of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, WIDTH)
        self.body = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("seen", torch.zeros(4, WIDTH))

    def forward(self, tokens: Tensor, cache: Tensor) -> Tensor:
        x = self.table(tokens)
        cache.copy_(x * 2)
        y = self.body[0](x)
        self.seen.add_(y)
        y.mul_(2)
        half = F.linear(self.body[1](y), self.body[2].weight[: WIDTH // 2])
        return self.body[3](y) + half.repeat(1, 2) + cache


class Experts(nn.Module):
    """Branches that read two shared weights in turn, and a value that all of them read: orders are many."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        found = [torch.sin(self.shared[i % 2](x + i)) for i in range(6)]
        return self.last(torch.stack(found).sum(0))


class Pictures(nn.Module):
    """Convolutions whose activations are larger than their weights, with a branch around."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x + F.relu(self.second(x))
        return self.last(x.mean((2, 3)))


class Attention(nn.Module):
    """A layer with attention, both of its dimensions symbolic, and one operator that is too large."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 200)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.head(x)


class Blocks(nn.Module):
    """A table, and blocks of a list that each have several operators."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).exp()


class Subject(NamedTuple):
    """An exported model and a plan of it."""

    program: torch.export.ExportedProgram
    plan: Plan


def _export(model: nn.Module, *inputs: Tensor, shapes: Any = None) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), inputs, dynamic_shapes=shapes, strict=False)


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _layers() -> torch.export.ExportedProgram:
    return _export(Layers(), _draw(4, WIDTH), shapes=({0: torch.export.Dim("rows", max=512)},))


def _caches() -> torch.export.ExportedProgram:
    return _export(Caches(), torch.arange(4), torch.zeros(4, WIDTH))


def _blocks() -> torch.export.ExportedProgram:
    return _export(Blocks(), torch.arange(4))


def _attention() -> torch.export.ExportedProgram:
    dims = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=512)}
    return _export(Attention(), _draw(2, 6, WIDTH), shapes=(dims,))


#: {name: (the model, bytes of a device, options of the plan)}
SUBJECTS: dict[str, tuple[Callable[[], torch.export.ExportedProgram], Any, dict[str, Any]]] = {
    "layers": (_layers, 900, {}),
    "layers traffic": (_layers, 900, {"objective": "traffic", "order": "trace", "devices": ["a", "b", "c", "d"]}),
    "towers": (lambda: _export(Towers(), _draw(4, WIDTH)), 900, {}),
    "caches": (_caches, 1000, {"keep_together": ["table", ["linear", "mul"]]}),
    "experts": (lambda: _export(Experts(), _draw(4, WIDTH)), 1300, {}),
    "pictures": (lambda: _export(Pictures(), _draw(2, 3, 8, 8)), 8000, {"devices": 8, "replicate": True}),
    "attention": (_attention, 4000, {}),
    "uneven": (_attention, [3000, 1500, 4000, 900], {}),
    "short": (_layers, 500, {"devices": 3}),
    "fused": (_layers, 900, {"footprint": "fused"}),
    "device": (_blocks, 1500, {"memory": "device"}),
    "modules": (_blocks, 1000, {"boundaries": "modules"}),
    "named": (_blocks, [1700, 900, 800], {"memory": "device", "boundaries": ["Sequential", "table"]}),
}


def subject(name: str) -> Subject:
    """The model and the plan of this name; weights are the same in each call."""
    make, budget, options = SUBJECTS[name]
    torch.manual_seed(0)
    program = make()
    return Subject(program, fx_partition.plan(program, cache_bytes=budget, **options))
