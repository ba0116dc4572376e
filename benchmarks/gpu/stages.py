"""Three kinds of stages that read their weights once: a read kernel, products by cuBLAS, a block under inductor.

Weights are random: on zeros a product runs faster than it ever will on data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BATCH = 16


@dataclass(frozen=True)
class Kind:
    """A kind of stage.

    Attributes:
        name: "read", "cublas" or "inductor".
        weights: returns random weights on the current GPU, of about the number of bytes that it is given.
        run: runs a stage with weights of these sizes; it may compile for them first.
    """

    name: str
    weights: Callable[[int], list[Tensor]]
    run: Callable[[Sequence[Tensor]], Callable[[Sequence[Tensor]], Tensor]]


def width_for(stage_bytes: float) -> int:
    """Return the width of two square layers of two bytes a weight and this many bytes in all, a multiple of 64."""
    return max(64, round((stage_bytes / 4) ** 0.5 / 64) * 64)


def two_layers(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return two products, each a kernel."""
    return F.linear(F.linear(x, first), second)


def block(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return a normalised residual block: a kernel of inductor before each of two products, of which one adds ``x``."""
    normal = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5).to(x.dtype)
    return x + F.linear(F.silu(F.linear(normal, first)), second)


def _buffer(size: int) -> list[Tensor]:
    from .read_kernel import BLOCK

    return [torch.randn(max(1, size // 4 // BLOCK) * BLOCK, device="cuda")]


def _squares(size: int) -> list[Tensor]:
    width = width_for(size)
    return [torch.randn(width, width, device="cuda", dtype=torch.bfloat16) / width**0.5 for _ in range(2)]


def _input(weights: Sequence[Tensor]) -> Tensor:
    return torch.randn(BATCH, weights[0].shape[1], device="cuda", dtype=weights[0].dtype)


def _reader(weights: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    from .read_kernel import read

    return lambda own: read(own[0])


def _products(weights: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    x = _input(weights)
    return lambda own: two_layers(x, *own)


def _compiled(weights: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    x = _input(weights)
    torch.compiler.reset()  # each size is compiled for itself, and Dynamo stops after some
    function = torch.compile(block, fullgraph=True, dynamic=False)
    return lambda own: function(x, *own)


KINDS = (
    Kind("read", _buffer, _reader),
    Kind("cublas", _squares, _products),
    Kind("inductor", _squares, _compiled),
)
