"""Networks of published experiments on CIFAR-10, untrained: their shapes are what costs are compared with.

VGG-16, ResNet-56 and ResNet-110 are those of Li et al., "Pruning Filters for Efficient ConvNets", 2017; VGG-19,
ResNet-164 with pre-activation and DenseNet-40 those of Liu et al., "Network Slimming", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .transforms import Shape
from .zoo_parts import POOL, Build, DenseLayer, check_size, initialised, vgg_layers

VGG16: tuple[int | str, ...] = (64, 64, POOL, 128, 128, POOL, *[256] * 3, POOL, *[512] * 3, POOL, *[512] * 3, POOL)
VGG19: tuple[int | str, ...] = (64, 64, POOL, 128, 128, POOL, *[256] * 4, POOL, *[512] * 4, POOL, *[512] * 4)


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without weights (He et al. 2016, option A).

    Where shapes change, the shortcut takes every second pixel and adds channels of zeros on both sides.
    """

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.added = (n_out - n_in) // 2
        self.every_second = nn.AvgPool2d(1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        x = self.every_second(x)
        if self.added:
            x = functional.pad(x, (0, 0, 0, 0, self.added, self.added))
        return self.relu2(y + x)


class PreactivationBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each behind BN and ReLU (He et al., "Identity Mappings", 2016).

    The projection where shapes change reads the block's input before its first normalisation.
    """

    def __init__(self, n_in: int, inner: int, stride: int):
        super().__init__()
        n_out = 4 * inner
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, inner, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(inner), nn.Conv2d(inner, n_out, 1, bias=False)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu1(self.bn1(x)))
        y = self.conv2(self.relu2(self.bn2(y)))
        return self.conv3(self.relu3(self.bn3(y))) + self.downsample(x)


def vgg_of(widths: Sequence[int | str], hidden: int | None, name: str) -> Build:
    """VGG for CIFAR with normalisations; the map is averaged to one pixel before the linear layers."""

    def build(n_classes: int, input_shape: Shape) -> nn.Module:
        layers, (channels, _, _) = vgg_layers(widths, name, input_shape)
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if hidden is not None:
            layers += [nn.Linear(channels, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
            channels = hidden
        return initialised(nn.Sequential(*layers, nn.Linear(channels, n_classes)))

    return build


def resnet(n_blocks: int) -> Build:
    """ResNet for CIFAR of ``6 n_blocks + 2`` layers: three stages of 16, 32 and 64 channels."""

    def build(n_classes: int, input_shape: Shape) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
        layers.append(nn.ReLU())
        channels = 16
        for width in (16, 32, 64):
            for block in range(n_blocks):
                layers.append(PaddedBlock(channels, width, 2 if block == 0 and width > 16 else 1))
                channels = width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)]
        return initialised(nn.Sequential(*layers))

    return build


def preresnet(n_blocks: int, name: str) -> Build:
    """Pre-activation ResNet of ``9 n_blocks + 2`` layers: three stages of bottlenecks of 16, 32 and 64 channels."""

    def build(n_classes: int, input_shape: Shape) -> nn.Module:
        check_size(name, input_shape, input_shape[1] // 4, input_shape[2] // 4)
        layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)]
        channels = 16
        for inner in (16, 32, 64):
            for block in range(n_blocks):
                layers.append(PreactivationBottleneck(channels, inner, 2 if block == 0 and inner > 16 else 1))
                channels = 4 * inner
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return initialised(nn.Sequential(*layers, nn.Linear(channels, n_classes)))

    return build


def densenet(n_layers: int, growth: int, name: str) -> Build:
    """DenseNet of three blocks with 16 channels at first; transitions keep all channels (Huang et al. 2017)."""

    def build(n_classes: int, input_shape: Shape) -> nn.Module:
        channels = 16
        height, width = input_shape[1:]
        layers: list[nn.Module] = [nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)]
        for block in range(3):
            for _ in range(n_layers):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            if block < 2:
                layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2)]
                height, width = height // 2, width // 2
        check_size(name, input_shape, height, width)
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)]
        return initialised(nn.Sequential(*layers))

    return build


def mlp_bn(n_classes: int, input_shape: Shape) -> nn.Module:
    """Hidden layers of 500 and 300 neurons with normalisations (Liu et al. 2017, section 4.1: on MNIST)."""
    channels, height, width = input_shape
    layers: list[nn.Module] = [nn.Flatten()]
    n_in = channels * height * width
    for n_out in (500, 300):
        layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
        n_in = n_out
    return nn.Sequential(*layers, nn.Linear(n_in, n_classes))


PUBLISHED: dict[str, Build] = {
    "vgg16-cifar": vgg_of(VGG16, 512, "vgg16-cifar"),
    "vgg19-cifar": vgg_of(VGG19, None, "vgg19-cifar"),
    "resnet56-cifar": resnet(9),
    "resnet110-cifar": resnet(18),
    "preresnet164-cifar": preresnet(18, "preresnet164-cifar"),
    "densenet40-cifar": densenet(12, 12, "densenet40-cifar"),
}
