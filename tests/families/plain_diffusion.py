"""The U-Net of diffusion models, in channels_last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .family import Family
from .plain_images import images


class TimedBlock(nn.Module):
    """The residual block of diffusion models: group norms, and a shift and scale by the time."""

    def __init__(self, cin: int, cout: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.time = nn.Linear(time, 2 * cout)
        self.norm2, self.conv2 = nn.GroupNorm(4, cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.norm2(y) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(y))


class ImageAttention(nn.Module):
    """Self-attention over the places of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, 2, c // 2, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(b, c, h, w))


class DiffusionUNet(nn.Module):
    """A U-Net of two levels, with the time of diffusion as an input."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down1, self.pool1 = TimedBlock(width, width, 32), nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.down2, self.attention = TimedBlock(width, 2 * width, 32), ImageAttention(2 * width)
        self.up1 = TimedBlock(3 * width, width, 32)
        self.norm, self.head = nn.GroupNorm(4, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(8, device=x.device) * -0.5)
        angles = time[:, None] * frequencies
        t = self.embed(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.down1(self.stem(x), t)
        y = self.attention(self.down2(self.pool1(x), t))
        y = torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), x], dim=1)
        return self.head(F.silu(self.norm(self.up1(y, t))))


def noisy(rng: Generator) -> tuple[Tensor, Tensor]:
    return *images(channels_last=True)(rng), torch.rand(2, generator=rng) * 10


FAMILIES = [
    Family("diffusion_unet", lambda: DiffusionUNet().to(memory_format=torch.channels_last), noisy,
           by_inductor=True, by_pipeline=True),
]
