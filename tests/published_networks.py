"""Networks of published pruning results, in the shapes for 32x32 images."""

import torch
from torch import nn
from torch.nn import functional as F

IMAGES = (3, 32, 32)
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16(widths=_VGG16, classifier=512):
    """VGG-16 for CIFAR-10 (Li et al. 2017, appendix): 13 convolutions and two linear layers."""
    layers, channels = [], 3
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    layers += [nn.Flatten(), nn.Linear(channels, classifier), nn.BatchNorm1d(classifier), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(classifier, 10)).eval()


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters: every second pixel, zeros for new channels."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.stride, self.more = stride, n_out - n_in

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(x + y)


class ResNet(nn.Module):
    """ResNet of 6n + 2 layers for CIFAR-10 (He et al. 2016, shortcuts of option A)."""

    def __init__(self, depth):
        super().__init__()
        n, channels, blocks = (depth - 2) // 6, 16, []
        self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        for width in (16, 32, 64):
            for place in range(n):
                blocks.append(Block(channels, width, 2 if place == 0 and width > 16 else 1))
                channels = width
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet(depth):
    """ResNet-20, 32, 44, 56 or 110."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet(depth).eval()


def first_convolutions(depth, skip):
    """Paths of the first convolution of each block but the skipped ones, by stage.

    Layers are counted as Li et al. 2017 do: from 1 at the stem, so that the first of a block has an even number.
    """
    n = (depth - 2) // 6
    return [[f"blocks.{i}.conv1" for i in range(s * n, (s + 1) * n) if 2 + 2 * i not in skip] for s in range(3)]
