"""Plain PyTorch models of graphs and of clouds of points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .family import Family
from .plain_functional import mlp

WIDTH = 48
NODES = 10


def graph(rng: Generator) -> tuple[Tensor, Tensor]:
    """Features of nodes, and edges from and to them."""
    return torch.randn(NODES, WIDTH, generator=rng), torch.randint(NODES, (2, 30), generator=rng)


class GraphConvolution(nn.Module):
    """Messages summed at their targets by ``index_add``, normalised by degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        degree = torch.ones(NODES).index_add(0, target, torch.ones(target.shape[0]))
        for layer in self.layers:
            messages = layer(x)[source] / degree[source, None].sqrt()
            x = F.relu(x + torch.zeros_like(x).index_add_(0, target, messages) / degree[:, None].sqrt())
        return self.head(x)


class GraphAttention(nn.Module):
    """A softmax over the edges that meet at a node, by ``scatter_reduce``."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.left = nn.ParameterList(nn.Parameter(torch.randn(heads, WIDTH // heads)) for _ in range(2))
        self.right = nn.ParameterList(nn.Parameter(torch.randn(heads, WIDTH // heads)) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        rows = target[:, None].expand(-1, self.heads)
        for layer, left, right in zip(self.layers, self.left, self.right, strict=True):
            h = layer(x).view(NODES, self.heads, -1)
            score = F.leaky_relu((h[source] * left).sum(-1) + (h[target] * right).sum(-1), 0.2)
            top = torch.full((NODES, self.heads), -1e4).scatter_reduce(0, rows, score, "amax")
            weight = (score - top[target]).exp()
            total = torch.zeros(NODES, self.heads).scatter_add(0, rows, weight)
            messages = h[source] * (weight / total[target])[..., None]
            x = F.elu(x + torch.zeros(NODES, WIDTH).index_add(0, target, messages.flatten(1)))
        return self.head(x)


class EdgeConvolution(nn.Module):
    """Points and their nearest neighbours, found again in each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 * a, b) for a, b in ((3, 16), (16, 32), (32, 32)))
        self.head = nn.Linear(80, 5)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.layers:
            near = torch.cdist(x, x).topk(4, dim=-1, largest=False).indices
            b, n, c = x.shape
            neighbours = x.gather(1, near.reshape(b, -1, 1).expand(-1, -1, c)).view(b, n, 4, c)
            own = x[:, :, None].expand_as(neighbours)
            x = F.leaky_relu(layer(torch.cat([own, neighbours - own], dim=-1))).amax(2)
            seen.append(x)
        return self.head(torch.cat(seen, dim=-1).amax(1))


class PointNet(nn.Module):
    """Points turned by a matrix that the model finds, pooled by their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.first = nn.Sequential(nn.Conv1d(3, 24, 1), nn.ReLU(), nn.Conv1d(24, 32, 1)), nn.Linear(32, 9)
        self.body = nn.Sequential(nn.Conv1d(3, 24, 1), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 48, 1))
        self.head = mlp(48, 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.first(self.turn(x).amax(2)).view(-1, 3, 3) + torch.eye(3)
        return self.head(self.body(torch.bmm(turn, x)).max(dim=2).values)


def cloud(rng: Generator, transposed: bool = False) -> tuple[Tensor]:
    x = torch.randn(2, 12, 3, generator=rng)
    return (x.transpose(1, 2).contiguous() if transposed else x,)


FAMILIES = [
    Family("graph_convolution", GraphConvolution, graph),
    Family("graph_attention", GraphAttention, graph),
    Family("edge_convolution", EdgeConvolution, cloud),
    Family("pointnet", PointNet, lambda rng: cloud(rng, transposed=True), by_pipeline=True),
]
