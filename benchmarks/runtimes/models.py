"""Models of equal blocks whose weights have a given size, so that half the blocks are half the bytes.

mlp           8 blocks: Linear(w, w), ReLU
transformer   4 encoder blocks over 16 tokens: attention of 4 heads, and a feed-forward of 4 w
conv          4 blocks on 4 x 4 pixels: 3x3 convolution, ReLU, 1x1 convolution, ReLU
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

KINDS = ("mlp", "transformer", "conv")
TOKENS, HEADS, PIXELS = 16, 4, 4
_BLOCKS = {"mlp": 8, "transformer": 4, "conv": 4}
_SQUARES = {"mlp": 1, "transformer": 12, "conv": 10}  # weights of a block, in squares of the width
_MULTIPLE = 8  # of the width: half a vector


@dataclass(frozen=True)
class Case:
    """One model, batch and dtype.

    Attributes:
        kind: one of `KINDS`.
        size: the weights in units of the usable L2.
        weight_bytes: the bytes to come close to, from below.
        batch: rows of a request.
        dtype: "float32" or "bfloat16".
    """

    kind: str
    size: float
    weight_bytes: int
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.size:g}x, batch {self.batch}, {self.dtype}"

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def width(self) -> int:
        entries = self.weight_bytes / self.torch_dtype.itemsize / _BLOCKS[self.kind] / _SQUARES[self.kind]
        return max(_MULTIPLE, int(math.sqrt(entries)) // _MULTIPLE * _MULTIPLE)

    def model(self) -> nn.Sequential:
        """Return the model, with the same weights at each call."""
        torch.manual_seed(0)
        blocks = [_block(self.kind, self.width) for _ in range(_BLOCKS[self.kind])]
        return nn.Sequential(*blocks).eval().to(self.torch_dtype)

    def requests(self, count: int) -> list[Tensor]:
        """Return inputs that are all different."""
        generator = torch.Generator().manual_seed(1)
        inner = {"mlp": (), "transformer": (TOKENS,), "conv": (self.width, PIXELS, PIXELS)}[self.kind]
        shape = (self.batch, *inner) if self.kind == "conv" else (self.batch, *inner, self.width)
        return [torch.randn(shape, generator=generator).to(self.torch_dtype) for _ in range(count)]


def size_of(model: nn.Module) -> int:
    """Return the bytes of a model's weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _block(kind: str, width: int) -> nn.Module:
    if kind == "mlp":
        return nn.Sequential(_scaled(nn.Linear(width, width)), nn.ReLU())
    if kind == "conv":
        wide, narrow = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        return nn.Sequential(_scaled(wide), nn.ReLU(), _scaled(narrow), nn.ReLU())
    return _Encoder(width)


def _scaled(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Return activations that neither vanish nor grow: arithmetic on denormal numbers would be slower."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


class _Encoder(nn.Module):
    """A transformer's encoder block, normalised first; `nn.TransformerEncoderLayer` is one operator in eager mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))
