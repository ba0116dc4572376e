"""Plain PyTorch models with attention of many kinds."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import Family

VOCAB = 96
WIDTH = 64
HEADS = 4


def text(length: int = 16, batch: int = 2) -> Any:
    return lambda rng: (torch.randint(1, VOCAB, (batch, length), generator=rng),)


def points(count: int = 12, width: int = WIDTH) -> Any:
    return lambda rng: (torch.randn(2, count, width, generator=rng),)


class Attention(nn.Module):
    """Heads around a function of q, k and v, each [batch, heads, tokens, width]."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, t, d))


class BiasedAttention(Attention):
    """A learned bias as the mask, and gains of what comes out."""

    def __init__(self, tokens: int = 16) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, HEADS, tokens, tokens))
        self.gain = nn.Parameter(torch.randn(HEADS, tokens, WIDTH // HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias) * self.gain


class FlexAttention(Attention):
    """flex_attention, its mask made in forward and its scores changed by learned slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.rand(HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) & (i - j < 5)

        def leaning(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + self.slopes[h] * (j - i)

        t = q.shape[2]
        mask = create_block_mask(near, None, None, t, t, device=str(q.device))
        result = flex_attention(q, k, v, score_mod=leaning, block_mask=mask)
        assert isinstance(result, Tensor)
        return result


class RotaryAttention(Attention):
    """Positions as turns of complex numbers, keys and queries normalised."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t, d = q.shape[2], q.shape[3]
        rates = 10.0 ** (-torch.arange(0, d, 2, device=q.device) / d)
        turns = torch.polar(torch.ones(t, d // 2), torch.outer(torch.arange(t, device=q.device), rates))
        q, k = (self.turn(F.normalize(x, dim=-1), turns) for x in (q, k))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=math.sqrt(d))

    @staticmethod
    def turn(x: Tensor, turns: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2)


class RelativeAttention(Attention):
    """Scores by distance, brought in place by the skewing of Music Transformer."""

    def __init__(self, tokens: int = 16) -> None:
        super().__init__()
        self.distances = nn.Parameter(torch.randn(HEADS, tokens, WIDTH // HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, h, t, d = q.shape
        by_distance = F.pad(q @ self.distances.transpose(-1, -2), (1, 0))
        skewed = by_distance.view(b, h, t + 1, t)[:, :, 1:]
        scores = (q @ k.transpose(-1, -2) + skewed) / math.sqrt(d)
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
        return scores.softmax(-1) @ v


class WindowAttention(Attention):
    """Overlapping windows as views of one storage."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        around = [F.pad(x, (0, 0, 3, 0)).unfold(2, 4, 1) for x in (k, v)]
        scores = torch.einsum("bhtd,bhtdw->bhtw", q, around[0]) / math.sqrt(q.shape[-1])
        return torch.einsum("bhtw,bhtdw->bhtd", scores.softmax(-1), around[1])


class RandomFeatures(Attention):
    """The softmax kernel by random features, as Performer has it; prefix sums for the causal one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("features", torch.randn(24, WIDTH // HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.25
        q, k = (
            torch.exp(x * scale @ self.features.T / 2 - (x * scale).square().sum(-1, keepdim=True) / 2) + 1e-3
            for x in (q, k)
        )
        sums = torch.einsum("bhtf,bhtd->bhtfd", k, v).cumsum(2)
        return torch.einsum("bhtf,bhtfd->bhtd", q, sums) / (q * k.cumsum(2)).sum(-1, keepdim=True)


class Decoder(nn.Module):
    """A language model around one kind of attention, its head tied to its embedding."""

    def __init__(self, attention: Any, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(VOCAB, WIDTH), nn.Parameter(torch.zeros(16, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * depth))
        self.attentions = nn.ModuleList(attention() for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH)) for _ in range(depth))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x)


class CachedDecoder(nn.Module):
    """One token a call: keys and values go into caches, a counter says where; tokens before are seen through them."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        for i in range(depth):
            self.register_buffer(f"keys_{i}", 0.5 * torch.randn(2, HEADS, 8, WIDTH // HEADS))
            self.register_buffer(f"values_{i}", 0.5 * torch.randn(2, HEADS, 8, WIDTH // HEADS))
        self.register_buffer("count", torch.tensor([3]))

    def forward(self, token: Tensor) -> Tensor:
        x = self.embed(token)
        seen = torch.arange(8) <= self.count
        for i, (qkv, out) in enumerate(zip(self.qkv, self.out, strict=True)):
            q, k, v = qkv(F.layer_norm(x, (WIDTH,))).view(2, 1, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            keys, values = getattr(self, f"keys_{i}"), getattr(self, f"values_{i}")
            keys.index_copy_(2, self.count, k)
            values.index_copy_(2, self.count, v)
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[None, None, None])
            x = x + out(y.transpose(1, 2).reshape(2, 1, WIDTH))
        self.count.add_(1)
        return self.head(x)


class CrossAttention(nn.Module):
    """``nn.MultiheadAttention`` with other widths of keys and values, a mask, and its weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(5, WIDTH))
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(WIDTH, HEADS, kdim=24, vdim=24, batch_first=True, add_bias_kv=True) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.latents.expand(x.shape[0], -1, -1)
        hidden = torch.arange(x.shape[1]).expand(x.shape[0], -1) >= 10
        for layer in self.layers:
            y, weights = layer(latents, x, x, key_padding_mask=hidden)
            latents = F.layer_norm(latents + y, (WIDTH,))
        return latents, weights


class Seq2Seq(nn.Module):
    """``nn.Transformer``, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.body = nn.Transformer(WIDTH, HEADS, 2, 2, 128, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.body(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True))


class SetTransformer(nn.Module):
    """Inducing points and a pool by attention: the order of the inputs does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.seeds = nn.Parameter(torch.randn(4, WIDTH)), nn.Parameter(torch.randn(2, WIDTH))
        self.q, self.k, self.v = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)) for _ in range(3))
        self.head = nn.Linear(2 * WIDTH, 7)

    def block(self, i: int, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (f[i](z).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                   for f, z in ((self.q, x), (self.k, y), (self.v, y)))
        return F.rms_norm(x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), (WIDTH,))

    def forward(self, x: Tensor) -> Tensor:
        points, seeds = (z.expand(x.shape[0], -1, -1) for z in (self.points, self.seeds))
        x = self.block(1, x, self.block(0, points, x))
        return self.head(self.block(2, seeds, x).flatten(1))


class Mixer(nn.Module):
    """MLP-Mixer with a spatial gate: products over tokens and channels in turn."""

    def __init__(self, tokens: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.over_tokens = nn.ModuleList(nn.Linear(tokens, tokens) for _ in range(depth))
        self.over_channels = nn.ModuleList(nn.Linear(WIDTH // 2, WIDTH) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        for tokens, channels in zip(self.over_tokens, self.over_channels, strict=True):
            u, v = F.layer_norm(x, (WIDTH,)).chunk(2, dim=-1)
            x = x + channels(u * tokens(v.transpose(1, 2)).transpose(1, 2))
        return self.head(x.mean(1))


def decoder(attention: type[nn.Module]) -> Any:
    return lambda: Decoder(attention)


class HalfDecoder(nn.Module):
    """A decoder in bfloat16 whose norms and head compute in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Decoder(Attention).to(torch.bfloat16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(tokens).float().log_softmax(-1)


FAMILIES = [
    Family("attention_learned_bias", decoder(BiasedAttention), text(), by_inductor=True, by_pipeline=True),
    Family("flex_attention", decoder(FlexAttention), text(), by_inductor=True),
    Family("attention_rotary_complex", decoder(RotaryAttention), text(), by_pipeline=True),
    Family("attention_relative_skew", decoder(RelativeAttention), text()),
    Family("attention_windows", decoder(WindowAttention), text()),
    Family("attention_random_features", decoder(RandomFeatures), text()),
    Family("decoder_bfloat16", HalfDecoder, text()),
    Family("cached_decoder", CachedDecoder, text(1), by_inductor=True),
    Family("multihead_cross_attention", CrossAttention, points(width=24)),
    Family("nn_transformer", Seq2Seq, lambda rng: (*text(12)(rng), *text(7)(rng)), bitwise=False,
           why="in eval mode nn.TransformerEncoderLayer has a fast path, which torch.export does not take"),
    Family("set_transformer", SetTransformer, points()),
    Family("mixer", Mixer, points()),
]
