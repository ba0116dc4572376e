"""Plain PyTorch models of clicks, densities, codes and filters; experts; weights in int8."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .family import Family
from .plain_functional import mlp, vectors

WIDTH = 48


class LoopedExperts(nn.Module):
    """Experts in a loop, each on the rows that chose it, added back in place; two layers."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.routers = nn.ModuleList(nn.Linear(WIDTH, experts) for _ in range(2))
        self.experts = nn.ModuleList(nn.ModuleList(mlp(WIDTH, 64, WIDTH) for _ in range(experts)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for router, experts in zip(self.routers, self.experts, strict=True):
            weights, chosen = router(x).softmax(-1).topk(2, dim=-1)
            out = torch.zeros_like(x)
            for i, expert in enumerate(experts):
                row, rank = torch.where(chosen == i)
                out.index_add_(0, row, expert(x[row]) * weights[row, rank, None])
            x = F.layer_norm(x + out, (WIDTH,))
        return x


class DenseExperts(nn.Module):
    """Experts that all run, their rows masked; accumulated in place, without sizes that depend on the data."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(WIDTH, experts), nn.Linear(WIDTH, 5)
        self.experts = nn.ModuleList(mlp(WIDTH, 64, WIDTH) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(-1)
        rows, out = torch.arange(x.shape[0]), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out.index_add_(0, rows, expert(x) * gate[:, i : i + 1])
        return self.head(out)


class Clicks(nn.Module):
    """Embeddings of categories, numbers, and products of all pairs of them, as DLRM has it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 16) for n in (50, 80, 120))
        self.bottom, self.top = mlp(6, 32, 16), mlp(16 + 6, 32, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        rows = torch.stack([dense, *(table(categories[:, i]) for i, table in enumerate(self.tables))], dim=1)
        i, j = torch.triu_indices(4, 4, 1)
        return self.top(torch.cat([dense, torch.bmm(rows, rows.transpose(1, 2))[:, i, j]], dim=1)).sigmoid()


class Flow(nn.Module):
    """Coupling layers that change half of the values in place, and the logarithm of their volume."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(width // 2, 48, width) for _ in range(4))
        self.scales = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, volume = x * self.scales, self.scales.abs().log().sum()
        for i, net in enumerate(self.nets):
            scale, shift = net(x[:, i % 2 :: 2]).chunk(2, dim=-1)
            x = x.clone()
            x[:, 1 - i % 2 :: 2] = x[:, 1 - i % 2 :: 2] * scale.tanh().exp() + shift
            volume = volume + scale.tanh().sum(-1)
        return x, volume - x.square().sum(-1) / 2


class Codebook(nn.Module):
    """An autoencoder that rounds to the nearest entry of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 4, 2, 1))
        self.table = nn.Embedding(24, 16)
        self.decode = nn.Sequential(nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encode(x)
        rows = z.permute(0, 2, 3, 1).reshape(-1, 16)
        far = rows.square().sum(1, keepdim=True) - 2 * rows @ self.table.weight.T + self.table.weight.square().sum(1)
        index = far.argmin(1)
        near = self.table(index).view(z.shape[0], z.shape[2], z.shape[3], 16).permute(0, 3, 1, 2)
        return self.decode(near), index, F.mse_loss(near, z)


class RadianceField(nn.Module):
    """Rays through a field: encoded places, densities, transmittance by a product along each ray."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.skip = mlp(3 + 24, 48, 48), mlp(48 + 27, 48, 48)
        self.density, self.color = nn.Linear(48, 1), nn.Linear(48 + 3, 3)

    def forward(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        depth = torch.linspace(0.1, 2.0, 8)
        places = origins[:, None] + directions[:, None] * depth[:, None]
        angles = places[..., None] * 2.0 ** torch.arange(4)
        x = torch.cat([places, angles.sin().flatten(-2), angles.cos().flatten(-2)], dim=-1)
        h = self.skip(torch.cat([self.body(x), x], dim=-1))
        opaque = 1 - torch.exp(-F.softplus(self.density(h))[..., 0] * 0.3)
        clear = torch.cumprod(torch.cat([torch.ones_like(opaque[:, :1]), 1 - opaque + 1e-6], dim=1), dim=1)[:, :-1]
        color = self.color(torch.cat([h, directions[:, None].expand_as(places)], dim=-1)).sigmoid()
        return ((opaque * clear)[..., None] * color).sum(1), (opaque * clear * depth).sum(1)


class GaussianProcess(nn.Module):
    """Features by a network, then a posterior: Cholesky factors and triangular solves in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.known = mlp(4, 32, 8), nn.Parameter(torch.randn(6, 4))
        self.targets, self.noise = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.zeros(()))

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.net(x).double(), self.net(self.known).double()
        inner = self.kernel(b, b) + (self.noise.exp() * 0.1) * torch.eye(6, dtype=torch.float64)
        factor, across = torch.linalg.cholesky(inner), self.kernel(a, b)
        mean = across @ torch.cholesky_solve(self.targets.double(), factor)
        half = torch.linalg.solve_triangular(factor, across.T, upper=False)
        return mean, 1 - half.square().sum(0)


class TreeEnsemble(nn.Module):
    """Soft decisions along oblivious trees, features chosen by a sparse softmax: sorts and prefix sums."""

    def __init__(self, trees: int = 5, depth: int = 3) -> None:
        super().__init__()
        self.choice = nn.Parameter(torch.randn(12, trees * depth))
        self.thresholds = nn.Parameter(torch.zeros(trees * depth))
        self.leaves = nn.Parameter(torch.randn(trees, 2**depth, 4))
        self.trees, self.depth = trees, depth

    @staticmethod
    def sparsemax(x: Tensor) -> Tensor:
        ordered = x.sort(dim=0, descending=True).values
        ranks = torch.arange(1, x.shape[0] + 1)[:, None]
        sums = ordered.cumsum(0) - 1
        support = (ordered * ranks > sums).sum(0, keepdim=True)
        return (x - sums.gather(0, support - 1) / support).clamp_min(0)

    def forward(self, x: Tensor) -> Tensor:
        side = ((x @ self.sparsemax(self.choice) - self.thresholds) * 2).sigmoid().view(-1, self.trees, self.depth)
        weights = torch.ones_like(side[..., :1])
        for i in range(self.depth):
            p = side[..., i : i + 1]
            weights = torch.cat([weights * p, weights * (1 - p)], dim=-1)
        return torch.einsum("btl,tlo->bo", weights, self.leaves)


class Int8Linear(nn.Module):
    """A matrix as int8 and scales of its rows, in buffers; it is widened when it is used."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        weight = torch.randn(cout, cin) / math.sqrt(cin)
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("matrix", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0].clone())
        self.bias = nn.Parameter(torch.zeros(cout))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix.to(x.dtype)) * self.scale + self.bias


class Kalman(nn.Module):
    """A filter over observations: gains by inverses, one step after another; its model is learned."""

    def __init__(self, state: int = 6, seen: int = 3) -> None:
        super().__init__()
        self.move, self.see = nn.Parameter(torch.randn(state, state) / 3), nn.Parameter(torch.randn(seen, state) / 2)
        self.drift, self.doubt = nn.Parameter(torch.zeros(state)), nn.Parameter(torch.zeros(seen))

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        b = observed.shape[0]
        mean, cov = torch.zeros(b, 6, 1), torch.eye(6).expand(b, 6, 6)
        for y in observed.unbind(1):
            mean = self.move @ mean
            cov = self.move @ cov @ self.move.T + torch.diag(self.drift.exp())
            spread = self.see @ cov @ self.see.T + torch.diag(self.doubt.exp())
            gain = cov @ self.see.T @ torch.linalg.inv(spread)
            mean = mean + gain @ (y[..., None] - self.see @ mean)
            cov = (torch.eye(6) - gain @ self.see) @ cov
        return mean[..., 0], cov


def rays(rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, generator=rng), F.normalize(torch.randn(6, 3, generator=rng), dim=-1)


def clicks(rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6, generator=rng), torch.randint(50, (4, 3), generator=rng)


def int8_mlp() -> nn.Module:
    return nn.Sequential(Int8Linear(WIDTH, 96), nn.ReLU(), Int8Linear(96, 96), nn.ReLU(), Int8Linear(96, 5))


def numbers(*shape: int) -> Any:
    return lambda rng: (torch.randn(*shape, generator=rng),)


FAMILIES = [
    Family("experts_looped", LoopedExperts, vectors(batch=6), settings={"capture_dynamic_output_shape_ops": True}),
    Family("experts_index_add", DenseExperts, vectors(), by_inductor=True, by_pipeline=True),
    Family("clicks", Clicks, clicks),
    Family("normalizing_flow", Flow, vectors(16)),
    Family("codebook_autoencoder", Codebook, numbers(2, 3, 16, 16)),
    Family("radiance_field", RadianceField, rays),
    Family("gaussian_process", GaussianProcess, numbers(5, 4)),
    Family("tree_ensemble", TreeEnsemble, numbers(4, 12)),
    Family("int8_weights", int8_mlp, vectors()),
    Family("kalman_filter", Kalman, numbers(2, 5, 3), fixed=(1,)),
]
