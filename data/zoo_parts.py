"""Parts of the zoo's networks: blocks, plain stacks of convolutions, and initial weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from decomp.errors import UsageError

from .transforms import Shape

POOL = "pool"

#: ``build(n_classes, input_shape)``: a new network.
Build = Callable[[int, Shape], nn.Module]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, CIFAR form with a 1x1 projection where shapes change)."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        if stride == 1 and n_in == n_out:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel alone, project by 1x1 (Sandler et al. 2018), beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int, kernel: int = 3):
        super().__init__()
        hidden = n_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(n_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class DenseLayer(nn.Module):
    """BN, ReLU, 3x3 convolution; its new channels are appended to the input's (Huang et al. 2017)."""

    def __init__(self, n_in: int, growth: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(n_in)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(n_in, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], 1)


def vgg_layers(widths: Sequence[int | str], name: str, input_shape: Shape) -> tuple[list[nn.Module], Shape]:
    """Convolutions with normalisation and ReLU, halved at each `POOL` among the widths; and the shape of their map."""
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for item in widths:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        else:
            layers += [nn.Conv2d(channels, item, 3, padding=1, bias=False), nn.BatchNorm2d(item), nn.ReLU()]
            channels = item
    check_size(name, input_shape, height, width)
    return layers, (channels, height, width)


def vgg(widths: Sequence[int | str], name: str, dropout: float) -> Build:
    """3x3 convolutions with normalisation and ReLU, and one linear layer; `POOL` among the widths halves the map."""

    def build(n_classes: int, input_shape: Shape) -> nn.Module:
        layers, (channels, height, width) = vgg_layers(widths, name, input_shape)
        layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * height * width, n_classes)]
        return initialised(nn.Sequential(*layers))

    return build


def check_size(name: str, input_shape: Shape, height: int, width: int) -> None:
    """Refuse images that are too small for a network's poolings.

    Raises
    ------
    UsageError
    """
    if min(height, width) < 1:
        raise UsageError(
            f"zoo:{name}",
            "the images must be large enough for its poolings",
            got=f"{input_shape[1]}x{input_shape[2]} pixels",
            fix="give larger images or another network",
        )


def initialised(module: nn.Module) -> nn.Module:
    """The module with He et al.'s (2015) weights for convolutions followed by ReLU; all else as torch starts it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.groups > 1:
                # torch counts the filters of all groups, and a channel reaches only those of its own.
                with torch.no_grad():
                    part.weight.mul_(part.groups**0.5)
    return module
