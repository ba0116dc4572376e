"""A model in the shape of Llama that decodes one token of each row: random weights, bf16 or fp8, and a short KV cache.

Blocks and the last norm; the embedding is a gather and the output matrix would be a stage of its own. The cache is read
and not written, as stages on GPUs refuse a model that writes a state. In fp8 the weights of all products are
float8_e4m3 with one scale each, and activations are quantised with a scale that is known beforehand, as a calibrated
model does it: rounding to fp8 is then a part of the kernel before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # of float8_e4m3
_ACTIVATIONS = 1 / 64  # their scale: normalised values up to 7 are representable


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; ``rows`` is the largest batch that its cache holds, ``length`` the tokens in the cache."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head: int
    length: int
    rows: int


#: A block has 17.7 million weights: 33.7 MiB in bf16, half of it in fp8.
BLOCK = Shape(hidden=1280, ffn=3584, heads=10, kv_heads=2, head=128, length=128, rows=16)
TINY = Shape(hidden=64, ffn=128, heads=4, kv_heads=2, head=16, length=16, rows=16)


class Product(nn.Module):
    """A product with a random matrix in bf16, or in fp8 with a scale for the matrix and one for its operand.

    Args:
        precision: "bf16"; "fp8"; or "fp8 by bf16": fp8 values multiplied as bf16, where no kernel multiplies fp8.
    """

    def __init__(self, inputs: int, outputs: int, precision: str) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs) / inputs**0.5
        self.precision = precision
        if precision != "bf16":
            scale = weight.abs().max() / _LARGEST
            self.weight = nn.Parameter((weight / scale).to(FP8), requires_grad=False)
            self.register_buffer("scale", scale.float())
            self.register_buffer("operand_scale", torch.tensor(_ACTIVATIONS))
        else:
            self.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.precision == "bf16":
            return F.linear(x, self.weight)
        rows = x.reshape(-1, x.shape[-1])
        quantised = (rows.float() / _ACTIVATIONS).clamp(-_LARGEST, _LARGEST).to(FP8)
        if self.precision == "fp8 by bf16":
            product = F.linear(quantised.to(torch.bfloat16), self.weight.to(torch.bfloat16))
            scaled = (product.float() * (self.operand_scale * self.scale)).to(torch.bfloat16)
            return scaled.view(*x.shape[:-1], -1)
        product = torch._scaled_mm(
            quantised, self.weight.t(), scale_a=self.operand_scale, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        return product.view(*x.shape[:-1], -1)


class Norm(nn.Module):
    """The root mean square norm, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=torch.bfloat16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight


class Block(nn.Module):
    """Attention over the cache and the token itself, then a gated MLP, each normalised and added."""

    def __init__(self, shape: Shape, precision: str) -> None:
        super().__init__()
        self.shape = shape
        values = shape.kv_heads * shape.head
        self.norm, self.norm_1 = Norm(shape.hidden), Norm(shape.hidden)
        self.queries = Product(shape.hidden, shape.heads * shape.head, precision)
        self.keys, self.values = (Product(shape.hidden, values, precision) for _ in range(2))
        self.out = Product(shape.heads * shape.head, shape.hidden, precision)
        self.gate, self.up = (Product(shape.hidden, shape.ffn, precision) for _ in range(2))
        self.down = Product(shape.ffn, shape.hidden, precision)
        for name in ("cached_keys", "cached_values"):
            cached = torch.randn(shape.rows, shape.kv_heads, shape.length, shape.head)
            self.register_buffer(name, cached.to(torch.bfloat16))
        angle = shape.length / 10_000 ** (torch.arange(0, shape.head, 2) / shape.head)
        self.register_buffer("cos", torch.cat([angle, angle]).cos().to(torch.bfloat16))
        self.register_buffer("sin", torch.cat([angle, angle]).sin().to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm(x))
        y = self.norm_1(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _attend(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        queries = self._rotated(self._heads(self.queries(x), self.shape.heads))
        keys = torch.cat([self.cached_keys[:rows], self._rotated(self._heads(self.keys(x), self.shape.kv_heads))], 2)
        values = torch.cat([self.cached_values[:rows], self._heads(self.values(x), self.shape.kv_heads)], 2)
        found = F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return self.out(found.transpose(1, 2).reshape(rows, 1, -1))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], 1, heads, self.shape.head).transpose(1, 2)

    def _rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


def llama(shape: Shape, blocks: int, precision: str) -> nn.Sequential:
    """Return a model of random weights on the CPU; it maps ``[rows, 1, hidden]`` to the same."""
    return nn.Sequential(*(Block(shape, precision) for _ in range(blocks)), Norm(shape.hidden)).eval()


def example(shape: Shape, rows: int) -> Tensor:
    """Return random hidden states ``[rows, 1, hidden]``, in bf16 on the CPU."""
    return torch.randn(rows, 1, shape.hidden, dtype=torch.bfloat16)
