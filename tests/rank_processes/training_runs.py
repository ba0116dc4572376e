"""The runs of ranks in the tests of training: a model, a loss, ten steps by a schedule or in one process.

Names of models and schedules go to the ranks, which make their own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed import pipelining

import fx_partition

STEPS = 10
MICROBATCHES = 4
ROWS = 2  # of a microbatch


class Skips(nn.Module):
    """An MLP in which the input and the first hidden state are used again at the end; the input's mask too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.hidden = nn.ModuleList([nn.Linear(16, 16) for _ in range(6)])
        self.last = nn.Linear(24, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.unread = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positive = x[:, :4] > 0
        first = hidden = torch.relu(self.first(x))
        for layer in self.hidden:
            hidden = hidden + torch.tanh(layer(hidden)).transpose(0, 1).contiguous().transpose(0, 1)
        self.seen.add_(1)
        joined = self.last(torch.cat([hidden + first, x], dim=-1))
        return torch.where(positive, joined, joined * self.scale)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.other(x))))


class Masked(nn.Module):
    """A transformer; every block reads a mask that is computed from the tokens; embedding and head are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.blocks = nn.ModuleList([Block(8) for _ in range(3)])
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens != 0)[:, None, None, :] & torch.ones(5, 5, dtype=torch.bool).tril()
        mask = mask | torch.eye(5, dtype=torch.bool)
        x = self.embed(tokens) + self.positions
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


class Normed(nn.Module):
    """Its buffers are written in every microbatch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise((8, 32, 32, 4)))
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, last = self.layers
        for layer, norm in zip((first, second), self.norms, strict=True):
            x = torch.tanh(norm(layer(x).unflatten(1, (4, 8))).flatten(1))
        return last(x)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=30, n_positions=8, n_embd=8, n_layer=3, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False, tie_word_embeddings=True,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def mean_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output, target)


def cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


@dataclass(frozen=True)
class Case:
    """A model with its data: what makes it, its loss, and the largest token (0: floats)."""

    make: Callable[[], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    tokens: int = 0

    def model(self) -> nn.Module:
        torch.manual_seed(1)
        return self.make()

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(2)
        rows = ROWS * MICROBATCHES
        for _ in range(STEPS):
            if self.tokens:
                tokens = torch.randint(self.tokens, (rows, 6), generator=generator)
                yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
            else:
                yield torch.randn(rows, 8, generator=generator), torch.randn(rows, 4, generator=generator)


CASES = {
    "skips": Case(Skips, mean_square),
    "masked": Case(Masked, cross_entropy, tokens=12),
    "normed": Case(Normed, mean_square),
    "gpt2": Case(gpt2, cross_entropy, tokens=30),
}


@dataclass
class Trained:
    """What ten steps gave: the loss of each, the gradients of the last, and the weights; by the model's names."""

    losses: list[float]
    gradients: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def plain_loop(case: Case, run: Callable[[torch.Tensor], Any], parameters: Any) -> list[float]:
    """The steps in this process: each microbatch's loss, divided by their number. Returns the loss of each step."""
    losses = []
    optimizer = optimizer_of(parameters)
    for x, y in case.batches():
        optimizer.zero_grad()
        parts = []
        for part, target in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES), strict=True):
            output = run(part)
            loss = case.loss(getattr(output, "logits", output), target)
            (loss / MICROBATCHES).backward()
            parts.append(loss.item())
        losses.append(sum(parts) / MICROBATCHES)
        optimizer.step()
    return losses


@functools.cache
def alone(name: str) -> Trained:
    """What a case gives in one process."""
    case = CASES[name]
    model = case.model()
    losses = plain_loop(case, model, model.parameters())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Trained(losses, gradients, {key: value.detach() for key, value in model.state_dict().items()})


def train_each(rank: int, world_size: int, runs: list[tuple[str, str, dict[str, Any]]]) -> list[Trained]:
    """Several runs in one process, as starting one takes longer than a run."""
    return [train(*run) for run in runs]


def train(name: str, schedule: str, options: dict[str, Any]) -> Trained:
    """On this rank: the stages that it holds; losses only where the last one is."""
    case = CASES[name]
    model = case.model()
    x, _ = next(case.batches())
    stages = fx_partition.to_pipeline_stages(model, x[:ROWS], **options)
    del model
    kind = getattr(pipelining, schedule)
    one = issubclass(kind, pipelining.schedules.PipelineScheduleSingle)
    steps = kind(stages[0] if one else list(stages), MICROBATCHES, loss_fn=case.loss)
    optimizer = optimizer_of(stages.parameters())
    losses = []
    for x, y in case.batches():
        optimizer.zero_grad()
        parts: list[torch.Tensor] = []
        is_first = any(stage.is_first for stage in stages)
        is_last = any(stage.is_last for stage in stages)
        steps.step(*([x] if is_first else []), target=y if is_last else None, losses=parts if is_last else None)
        stages.reduce_tied_gradients()
        if parts:
            losses.append(sum(part.item() for part in parts) / MICROBATCHES)
        optimizer.step()
    gradients = {name: p.grad for name, p in stages.named_parameters() if p.grad is not None}
    return Trained(losses, gradients, {key: value.detach() for key, value in stages.state_dict().items()})
