"""Models in plain ``torch.nn``."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .family import Family

VOCAB = 256
WIDTH = 128


def lively(model: nn.Module) -> nn.Module:
    """The model with weights and statistics that let a change anywhere reach the output at a size to see.

    The default initialisation shrinks the signal layer by layer, and the batch norms of an untrained
    model are the identity: an error in an early layer would drown in the last bias.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.LSTM):
            for weights in module.all_weights:
                for weight in weights:
                    nn.init.normal_(weight, std=0.2)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 1.0, 3.0)
    return model


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A "same" convolution and its batch norm."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout)]


class BasicBlock(nn.Module):
    """The residual block of ResNet-18."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(cin, cout, 3, stride), nn.ReLU(), *conv_bn(cout, cout, 3))
        same = stride == 1 and cin == cout
        self.skip = nn.Identity() if same else nn.Sequential(*conv_bn(cin, cout, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet18(width: int = 16, classes: int = 10) -> nn.Module:
    """ResNet-18 for 32x32 images, at a quarter of the usual width."""
    layers: list[nn.Module] = [*conv_bn(3, width, 3), nn.ReLU()]
    cin = width
    for stage in range(4):
        cout = width * 2**stage
        layers += [BasicBlock(cin, cout, 1 if stage == 0 else 2), BasicBlock(cout, cout, 1)]
        cin = cout
    return lively(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, classes)))


class InvertedResidual(nn.Module):
    """The block of MobileNetV2: expand, depthwise convolution, project."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = cin * expand
        grow = [] if expand == 1 else [*conv_bn(cin, mid, 1), nn.ReLU6()]
        depthwise = [*conv_bn(mid, mid, 3, stride, groups=mid), nn.ReLU6()]
        self.body = nn.Sequential(*grow, *depthwise, *conv_bn(mid, cout, 1))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenetv2(classes: int = 10) -> nn.Module:
    """MobileNetV2 for 32x32 images, at about a third of the usual width."""
    table = [(1, 8, 1, 1), (6, 8, 2, 1), (6, 16, 3, 2), (6, 24, 4, 2)]
    table += [(6, 32, 3, 1), (6, 56, 3, 2), (6, 112, 1, 1)]
    layers: list[nn.Module] = [*conv_bn(3, 8, 3), nn.ReLU6()]
    cin = 8
    for expand, cout, repeats, stride in table:
        for i in range(repeats):
            layers.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expand))
            cin = cout
    layers += [*conv_bn(cin, 256, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return lively(nn.Sequential(*layers, nn.Linear(256, classes)))


def double_conv(cin: int, cout: int) -> nn.Module:
    """Two 3x3 convolutions, one with a group norm and one with a batch norm."""
    group = [nn.Conv2d(cin, cout, 3, padding=1), nn.GroupNorm(8, cout), nn.SiLU()]
    return nn.Sequential(*group, *conv_bn(cout, cout, 3), nn.SiLU())


class UNet(nn.Module):
    """Three levels down and up; each level's skip lives from its encoder to its decoder."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96), bottom: int = 128, classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(double_conv(a, b) for a, b in pairwise((3, *widths)))
        self.bottom = double_conv(widths[-1], bottom)
        up = (bottom, *widths[::-1])
        pairs = list(pairwise(up))
        self.lift = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(double_conv(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for lift, block in zip(self.lift, self.up, strict=True):
            x = block(torch.cat([lift(x), skips.pop()], dim=1))
        return self.head(x)


class Encoder(nn.Module):
    """Token embedding, ``nn.TransformerEncoder`` under a causal mask, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.head(self.encoder(self.embed(tokens), mask=mask, is_causal=True))


class LSTM(nn.Module):
    """Token embedding, a three-layer ``nn.LSTM``, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=3, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0])


def mlp(width: int = 256, depth: int = 6) -> nn.Module:
    """Equal linear layers with a GELU between them."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.GELU())]
    return lively(nn.Sequential(*layers, nn.Linear(width, 10)))


def images(batch: int, rng: Generator) -> tuple[Tensor]:
    return (torch.randn(batch, 3, 32, 32, generator=rng),)


def tokens(batch: int, rng: Generator) -> tuple[Tensor]:
    return (torch.randint(VOCAB, (batch, 16), generator=rng),)


def vectors(batch: int, rng: Generator) -> tuple[Tensor]:
    return (torch.randn(batch, 256, generator=rng),)


FAMILIES = [
    Family("mlp", mlp, vectors),
    Family("resnet18", resnet18, images),
    Family("mobilenetv2", mobilenetv2, images),
    Family("unet", lambda: lively(UNet()), images),
    Family("transformer_encoder", Encoder, tokens),
    Family(
        "lstm", lambda: lively(LSTM()), tokens, dynamo_config={"allow_rnn": True},
        why="without allow_rnn Dynamo skips the frame that reads self.lstm, and compiles nothing",
    ),
]
