"""Models with quantised weights, as torchao makes them and as others write them, and the bytes that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

WIDTH = 256


def held_bytes(model: nn.Module) -> int:
    """The bytes of all parameters and buffers; of a tensor subclass those of its inner tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(plain.nbytes for tensor in tensors for plain in _inner(tensor))


def _inner(tensor: Any) -> Iterator[torch.Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _inner(getattr(tensor, name))


class Int8Linear(nn.Module):
    """A linear layer with an int8 weight and a scale for each row, as buffers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t().to(x.dtype) * self.scale + self.bias


class LookupLinear(nn.Module):
    """Two 4-bit codes in a byte, a codebook, and the largest value of each block of 64, as bitsandbytes writes them."""

    BLOCK = 64

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        blocks = linear.weight.detach().reshape(-1, self.BLOCK)
        codebook = torch.linspace(-1, 1, 16)
        absmax = blocks.abs().amax(1)
        codes = ((blocks / absmax[:, None])[..., None] - codebook).abs().argmin(-1).to(torch.uint8).reshape(-1, 2)
        self.shape = tuple(linear.weight.shape)
        self.register_buffer("packed", codes[:, 0] << 4 | codes[:, 1])
        self.register_buffer("codebook", codebook)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = torch.stack((self.packed >> 4, self.packed & 15), -1).reshape(-1, self.BLOCK).to(torch.int32)
        weight = (self.codebook[codes] * self.absmax[:, None]).reshape(self.shape)
        return nn.functional.linear(x, weight, self.bias)


class Q8Linear(nn.Module):
    """Blocks of 34 bytes, a half-precision scale and 32 codes: q8_0 of GGUF."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        blocks = linear.weight.detach().reshape(-1, 32)
        scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
        codes = (blocks / scale.float()).round().clamp(-127, 127).to(torch.int8)
        self.shape = tuple(linear.weight.shape)
        self.register_buffer("blocks", torch.cat((scale.view(torch.uint8), codes.view(torch.uint8)), 1))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, codes = self.blocks[:, :2].view(torch.float16), self.blocks[:, 2:].view(torch.int8)
        return nn.functional.linear(x, (codes.float() * scale.float()).reshape(self.shape), self.bias)


class Q4Linear(nn.Module):
    """Blocks of 18 bytes, a half-precision scale and 32 codes of four bits: q4_0 of GGUF."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        blocks = linear.weight.detach().reshape(-1, 32)
        scale = (blocks.abs().amax(1, keepdim=True) / 8).half()
        codes = (blocks / scale.float() + 8).round().clamp(0, 15).to(torch.uint8)
        self.shape = tuple(linear.weight.shape)
        self.register_buffer("blocks", torch.cat((scale.view(torch.uint8), codes[:, :16] | codes[:, 16:] << 4), 1))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, codes = self.blocks[:, :2].view(torch.float16), self.blocks[:, 2:]
        codes = torch.cat((codes & 15, codes >> 4), 1).to(torch.int8) - 8
        return nn.functional.linear(x, (codes.float() * scale.float()).reshape(self.shape), self.bias)


BUFFERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "int8 buffers": Int8Linear, "4-bit lookup": LookupLinear, "q8_0": Q8Linear, "q4_0": Q4Linear,
}  # fmt: skip
TORCHAO = {
    "Int8WeightOnly": "Int8WeightOnlyConfig",
    "Int8DynamicActivation": "Int8DynamicActivationInt8WeightConfig",
    "Float8WeightOnly": "Float8WeightOnlyConfig",
    "Int4WeightOnly": "Int4WeightOnlyConfig",
}
ALL = (*TORCHAO, *BUFFERS)


def quantised(kind: str, layers: int = 4, **config: Any) -> nn.Sequential:
    """Linear layers with weights of a kind in `ALL`; the test is skipped where torchao cannot make them here."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers))).eval().requires_grad_(False)
    if kind in BUFFERS:
        return nn.Sequential(*map(BUFFERS[kind], model)).eval()
    torchao = pytest.importorskip("torchao.quantization")
    try:
        torchao.quantize_(model, getattr(torchao, TORCHAO[kind])(**config))
    except ImportError as error:  # Int4Tensor needs a package of kernels for GPUs
        pytest.skip(f"torchao has no {kind} here: {error}")
    return model


def example() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(4, WIDTH)
