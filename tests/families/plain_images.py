"""Plain PyTorch models of images, volumes and signals."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrizations

from .family import Family


def images(size: int = 16, channels: int = 3, batch: int = 2, channels_last: bool = False) -> Any:
    def make(rng: Generator) -> tuple[Tensor]:
        x = torch.randn(batch, channels, size, size, generator=rng)
        return (x.to(memory_format=torch.channels_last) if channels_last else x,)

    return make


class DenseNet(nn.Module):
    """Each layer reads all before it."""

    def __init__(self, growth: int = 8, depth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, growth, 3, padding=1, bias=False))
            for c in range(16, 16 + depth * growth, growth)
        )
        self.head = nn.Linear(16 + depth * growth, 7)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, dim=1)))
        return self.head(torch.cat(features, dim=1).mean((2, 3)))


class ShuffleNet(nn.Module):
    """Grouped convolutions, their channels shuffled between; half of them pass by."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width // 2, width // 2, 1, groups=2), nn.BatchNorm2d(width // 2), nn.ReLU(),
                nn.Conv2d(width // 2, width // 2, 3, padding=1, groups=width // 2), nn.BatchNorm2d(width // 2),
                nn.Conv2d(width // 2, width // 2, 1), nn.ReLU(),
            ) for _ in range(4)
        )  # fmt: skip
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, branch(right)], dim=1)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(x.amax((2, 3)))


class Volumes(nn.Module):
    """3d convolutions with squeeze and excitation."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv3d(2, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(3))
        self.gates = nn.ModuleList(nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width)) for _ in range(3))
        self.head = nn.Linear(width * 8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, gate in zip(self.convs, self.gates, strict=True):
            y = conv(F.leaky_relu(x, 0.1))
            x = x + y * gate(y.mean((2, 3, 4))).sigmoid()[:, :, None, None, None]
        return self.head(F.adaptive_avg_pool3d(x, 2).flatten(1))


class Generator2d(nn.Module):
    """The generator of a GAN: transposed convolutions from a vector to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32 * 4 * 4)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(c, c // 2, 4, stride=2, padding=1) for c in (32, 16, 8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (32, 16, 8))
        self.head = nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).view(-1, 32, 4, 4)
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = up(F.relu(norm(x)))
        return torch.tanh(self.head(x) / 4)


def discriminator() -> nn.Module:
    """The discriminator of a GAN, its weights divided by their largest singular values."""
    layers: list[nn.Module] = []
    for cin, cout in ((3, 16), (16, 24), (24, 32)):
        conv = nn.Conv2d(cin, cout, 4, stride=2, padding=1)
        layers += [parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), parametrizations.spectral_norm(nn.Linear(32 * 4, 5)))


class StyleTransfer(nn.Module):
    """Instance norms whose scales come from a style image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, width, 3), nn.ELU(), nn.Conv2d(width, width, 3, 2, 1))
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, padding_mode="circular") for _ in range(3))
        self.decode = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        x, s = self.encode(content), self.encode(style)
        deviation, mean = torch.std_mean(s, dim=(2, 3), keepdim=True)
        x = F.instance_norm(x) * deviation + mean
        for block in self.blocks:
            x = x + F.softplus(block(x))
        return self.decode(x)


class SpatialTransformer(nn.Module):
    """The model finds where to look, and samples the image there."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
        self.theta = nn.Linear(72, 6)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.Conv2d(16, 16, 3), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(16 * 36, 7)

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.tanh(self.theta(self.locate(x))).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 3, 16, 16], align_corners=False)
        return self.head(self.body(F.grid_sample(x, grid, align_corners=False, padding_mode="border")))


class Detector(nn.Module):
    """A pyramid of features, heads shared by its levels, and the best places of each class."""

    def __init__(self, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(c, width, 3, stride=2, padding=1) for c in (3, width, width))
        self.laterals = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))
        self.classes, self.boxes = nn.Conv2d(width, classes, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = []
        for level in self.levels:
            x = F.relu(level(x))
            features.append(x)
        above, logits, boxes = None, [], []
        for i in (2, 1, 0):
            y = self.laterals[i](features[i])
            if above is not None:
                y = y + F.interpolate(above, size=y.shape[-2:], mode="nearest")
            above = y
            logits.append(self.classes(y).flatten(2))
            boxes.append((self.boxes(y) * self.scales[i]).flatten(2).exp())
        scores, places = torch.cat(logits, dim=2).sigmoid().topk(4, dim=2)
        found = torch.cat(boxes, dim=2).gather(2, places.flatten(1)[:, None].expand(-1, 4, -1))
        return {"scores": scores, "places": places, "boxes": found, "features": tuple(features)}


class Capsules(nn.Module):
    """Capsules routed by agreement, three rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.primary = nn.Conv2d(3, 16, 5, stride=2), nn.Conv2d(16, 32, 3, stride=2)
        self.routes = nn.Parameter(torch.randn(16, 5, 8, 8) / 4)

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return square / (1 + square) * x / (square + 1e-6).sqrt()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b = x.shape[0]
        u = self.primary(F.relu(self.conv(x))).view(b, 4, 8, -1).permute(0, 1, 3, 2).reshape(b, -1, 8)
        votes = torch.einsum("bni,ncio->bnco", self.squash(u), self.routes)
        logits = torch.zeros(b, votes.shape[1], 5, device=x.device)
        for _ in range(3):
            v = self.squash((logits.softmax(2)[..., None] * votes).sum(1))
            logits = logits + (votes * v[:, None]).sum(-1)
        return v, v.norm(dim=-1)


class FourierOperator(nn.Module):
    """A neural operator: the lowest frequencies are mixed by complex weights."""

    def __init__(self, width: int = 16, modes: int = 4) -> None:
        super().__init__()
        self.modes = modes
        self.lift, self.head = nn.Conv2d(3, width, 1), nn.Conv2d(width, 1, 1)
        self.spectral = nn.ParameterList(
            nn.Parameter(torch.randn(width, width, modes, modes, 2) / width**0.5) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, m = self.lift(x), self.modes
        for weight, skip in zip(self.spectral, self.skips, strict=True):
            low = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x)[..., :m, :m], torch.view_as_complex(weight))
            whole = F.pad(torch.view_as_real(low), (0, 0, 0, x.shape[-1] // 2 + 1 - m, 0, x.shape[-2] - m))
            x = F.gelu(torch.fft.irfft2(torch.view_as_complex(whole), s=x.shape[-2:]) + skip(x))
        return self.head(x)


class SuperResolution(nn.Module):
    """Residual blocks at the size of the input, then pixels out of channels; in bfloat16."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                                                nn.Conv2d(width, width, 3, padding=1)) for _ in range(3))
        self.up = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.to(torch.bfloat16))
        for block in self.body:
            x = x + 0.1 * block(x)
        return self.up(x).float()


FAMILIES = [
    Family("densenet", DenseNet, images()),
    Family("shufflenet", ShuffleNet, images()),
    Family("conv3d", Volumes, lambda rng: (torch.randn(2, 2, 6, 8, 8, generator=rng),)),
    Family("gan_generator", Generator2d, lambda rng: (torch.randn(2, 16, generator=rng),)),
    Family("spectral_norm_discriminator", discriminator, images(), keep=("original",)),
    Family("style_transfer", StyleTransfer, lambda rng: (images()(rng)[0], 1 + images()(rng)[0] / 2)),
    Family("spatial_transformer", SpatialTransformer, images()),
    Family("detector", Detector, images(), by_pipeline=True),
    Family("capsules", Capsules, images()),
    Family("fourier_operator", FourierOperator, images(), by_inductor=True),
    Family("super_resolution_bfloat16", lambda: SuperResolution().to(torch.bfloat16), images()),
]
