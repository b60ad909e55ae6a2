"""Pre-activation networks for the tests of scale factors and channel selection."""

from collections import OrderedDict

import torch
from networks import randomise
from torch import nn


class Bottleneck(nn.Module):
    """BN, ReLU, 1×1; BN, ReLU, 3×3; BN, ReLU, 1×1, beside a projection of the block's input; no biases."""

    def __init__(self, n_in=16, first=8, second=10, n_out=64):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, first, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(first), nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(second), nn.Conv2d(second, n_out, 1, bias=False)
        self.downsample = nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x):
        y = self.conv1(torch.relu(self.bn1(x)))
        y = self.conv2(torch.relu(self.bn2(y)))
        return self.conv3(torch.relu(self.bn3(y))) + self.downsample(x)


class Plain(nn.Module):
    """The same with the block's input as its shortcut, and two 3×3 convolutions."""

    def __init__(self, width):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


def preactivation(*blocks, n_in=16):
    """A stem, blocks, and a final normalisation before the classifier."""
    blocks = blocks or (Plain(n_in),)
    width = next(part.out_channels for part in reversed(list(blocks[-1].modules())) if isinstance(part, nn.Conv2d))
    parts = [("stem", nn.Conv2d(3, n_in, 3, padding=1, bias=False))]
    parts += [(f"block{number}", block) for number, block in enumerate(blocks)]
    parts += [("norm", nn.BatchNorm2d(width)), ("relu", nn.ReLU()), ("pool", nn.AdaptiveAvgPool2d(2))]
    parts += [("flatten", nn.Flatten()), ("fc", nn.Linear(4 * width, 5))]
    return randomise(nn.Sequential(OrderedDict(parts)))


SHAPE = (3, 6, 6)


def images(n=3):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(3))
