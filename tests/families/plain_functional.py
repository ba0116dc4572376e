"""Plain PyTorch models with torch.func in forward, operators with their own bodies, and calls in loops."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from .family import Family

WIDTH = 48


def vectors(width: int = WIDTH, batch: int = 4) -> Any:
    return lambda rng: (torch.randn(batch, width, generator=rng),)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Ensemble(nn.Module):
    """Members of one shape as one batch: their weights are stacked, vmap runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(8, 5)
        self.member = mlp(WIDTH, WIDTH, 8)
        stacked, _ = stack_module_state([mlp(WIDTH, WIDTH, 8) for _ in range(3)])
        self.names = [name.replace(".", "_") for name in stacked]
        self.keys = list(stacked)
        for name, value in zip(self.names, stacked.values(), strict=True):
            setattr(self, name, nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.silu(self.stem(x))
        weights = {key: getattr(self, name) for key, name in zip(self.keys, self.names, strict=True)}
        each = vmap(lambda w, y: functional_call(self.member, w, (y,)), in_dims=(0, None))(weights, x)
        return self.head(each.mean(0)), each.std(0)


class PerSampleGradients(nn.Module):
    """Features by a network, and the gradient of a second one's loss for each sample, which is scaled and used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.inner, self.head = mlp(WIDTH, WIDTH, WIDTH), nn.Linear(WIDTH, 6), mlp(6 * WIDTH, 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)

        def loss(weight: Tensor, sample: Tensor) -> Tensor:
            return F.linear(sample, weight, self.inner.bias).logsumexp(-1).square()

        gradients = vmap(grad(loss), in_dims=(None, 0))(self.inner.weight, x)
        return self.head(gradients.flatten(1) / gradients.flatten(1).norm(dim=1, keepdim=True))


class Physics(nn.Module):
    """A network of places, and what a differential equation says of it: derivatives by jvp and jacrev."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.heat = mlp(3, WIDTH, WIDTH, 1), nn.Parameter(torch.rand(3) + 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def at(point: Tensor) -> Tensor:
            return self.net(point)[0]

        slope = vmap(jacrev(at))(x)
        value, along = jvp(lambda y: self.net(y)[:, 0], (x,), (torch.ones_like(x),))
        return value, along + (slope * self.heat).sum(-1)


class Energy(nn.Module):
    """Steps down an energy that a network gives: torch.func.grad in a loop, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.head = mlp(WIDTH, 32, 1), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x - 0.5 * grad(lambda y: self.energy(y).sum())(x)
        return self.head(x)


class HyperNetwork(nn.Module):
    """One network writes the weights of another, an instance for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = mlp(WIDTH, 32, 16 * 8 + 8)
        self.stem, self.head = nn.Linear(WIDTH, 16), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        written = self.condition(x)
        weight, bias = written[:, :128].view(-1, 8, 16) / 4, written[:, 128:]
        y = torch.baddbmm(bias[:, :, None], weight, self.stem(x)[:, :, None])[..., 0]
        return self.head(F.hardswish(y))


class NeuralODE(nn.Module):
    """A flow integrated by the fourth-order rule of Runge and Kutta."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = mlp(WIDTH + 1, WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def speed(self, time: float, x: Tensor) -> Tensor:
        return self.field(torch.cat([x, torch.full_like(x[:, :1], time)], dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        step = 0.25
        for i in range(4):
            a = self.speed(i * step, x)
            b = self.speed((i + 0.5) * step, x + step / 2 * a)
            c = self.speed((i + 0.5) * step, x + step / 2 * b)
            d = self.speed((i + 1) * step, x + step * c)
            x = x + step / 6 * (a + 2 * b + 2 * c + d)
        return self.head(x)


class Equilibrium(nn.Module):
    """A fixed point by Anderson's mixing: small least squares within the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.inject, self.cell, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        injected, z = self.inject(x), torch.zeros_like(x)
        states, results = [], []
        for _ in range(4):
            f = torch.tanh(0.5 * self.cell(z) + injected)
            states, results = [*states[-2:], z], [*results[-2:], f]
            gaps = torch.stack(results, 1) - torch.stack(states, 1)
            gram = gaps @ gaps.transpose(1, 2) + 0.1 * torch.eye(gaps.shape[1])
            weights = torch.linalg.solve(gram, torch.ones_like(gram[:, :, :1]))
            z = ((weights / weights.sum(1, keepdim=True)) * torch.stack(results, 1)).sum(1)
        return self.head(z)


class Branches(nn.Module):
    """``torch.cond`` chooses between two networks by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = mlp(WIDTH, 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cond(x.mean() > 0, lambda y: self.left(y).relu(), lambda y: self.right(y).sin(), (x,))
        return self.head(x)


class Checkpointed(nn.Module):
    """Blocks under activation checkpointing, one of them under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(WIDTH, 2 * WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            with torch.autocast("cpu", torch.bfloat16, enabled=i == 2):
                y = checkpoint(block, x, use_reentrant=False)
            x = x + y.float()
        return x


class Clip(torch.autograd.Function):
    """A step whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        return x.clamp(-limit, limit).mul(4).round().div(4)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class FakeQuantised(nn.Module):
    """Activations rounded by a function with its own gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(Clip.apply(x, 3.0))
        return x


FAMILIES = [
    Family("vmap_ensemble", Ensemble, vectors(), by_inductor=True),
    Family("per_sample_gradients", PerSampleGradients, vectors(), trace="dynamo", by_inductor=True),
    Family("physics_informed", Physics, vectors(3), trace="dynamo"),
    Family("energy_steps", Energy, vectors(), trace="dynamo"),
    Family("hypernetwork", HyperNetwork, vectors(), by_pipeline=True),
    Family("neural_ode", NeuralODE, vectors()),
    Family("equilibrium", Equilibrium, vectors()),
    Family("cond_branches", Branches, vectors()),
    Family("checkpointed_autocast", Checkpointed, vectors()),
    Family("fake_quantised", FakeQuantised, vectors()),
]
