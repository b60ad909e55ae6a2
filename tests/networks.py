"""Small networks that the tests share."""

import torch
from torch import nn
from torch.nn import functional as F


def randomise(module, seed=0):
    """Weights of a sensible size and batch-normalisation statistics far from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean = torch.randn(layer.running_mean.shape, generator=generator) * 0.3
            layer.running_var = torch.rand(layer.running_var.shape, generator=generator) * 2 + 0.3
            if layer.affine:
                layer.weight.data = torch.rand(layer.weight.shape, generator=generator) + 0.5
                layer.bias.data = torch.randn(layer.bias.shape, generator=generator) * 0.3
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                fan_in = layer.in_channels * layer.weight[0, 0].numel() // (layer.stride[0] * layer.stride[1])
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            if layer.bias is not None:
                layer.bias.data = torch.randn(layer.bias.shape, generator=generator) * 0.2
    return module.eval()


def chain():
    """Every kind of chain in one: stride, dilation, odd padding, oblong kernels, with and without bias and BN."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=1e-2), nn.ReLU(),
            nn.Conv2d(8, 10, (3, 5), stride=(2, 1), padding=(1, 2)), nn.ReLU6(inplace=True),
            nn.Conv2d(10, 12, 3, padding="same", dilation=2, padding_mode="reflect"), nn.PReLU(12), nn.MaxPool2d(2),
            nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6, affine=False), nn.Hardswish(),
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 3 * 6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5),
        )
    )  # fmt: skip


CHAIN_INPUT = (2, 12, 12)


def upward():
    """Transposed convolutions of every kind: stride, output padding, dilation, oblong kernels, a normalisation."""
    return randomise(
        nn.Sequential(
            nn.ConvTranspose2d(6, 14, 4, bias=False), nn.BatchNorm2d(14), nn.ReLU(),
            nn.ConvTranspose2d(14, 12, 4, stride=2, padding=1), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(12, 10, (3, 5), stride=(2, 1), padding=(1, 3), output_padding=(1, 0), dilation=(1, 2)),
            nn.LeakyReLU(0.2), nn.Conv2d(10, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, stride=2),
        )
    )  # fmt: skip


UPWARD_INPUT = (6, 2, 3)


class Block(nn.Module):
    """A residual block with a projection, functional activations and a reshape that reads the batch size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(y)))
        x = F.avg_pool2d(self.depthwise(x), 2)
        return self.head(x.view(x.size(0), -1))


def block():
    """The residual block with random weights; takes (3, 8, 8)."""
    return randomise(Block(), 1)


class Gate(nn.Module):
    """Looks at the values to decide what to do, which cannot be traced."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x):
        return x * self.scale[:, None, None] if x.mean() > 0 else x * 0.25


class Detector(nn.Module):
    """A backbone with two outputs in a dict, as detectors have, and a head on them."""

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.down = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)
            self.deep = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x):
            low = torch.relu(self.down(torch.relu(self.stem(x))))
            return {"low": low, "high": low + self.deep(low)}

    def __init__(self):
        super().__init__()
        self.backbone, self.head = self.Backbone(), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        maps = self.backbone(x)
        if maps["low"].mean() > 1e9:
            return maps["low"]
        return self.head(torch.cat([maps["low"], maps["high"]], 1))


class Gated(nn.Module):
    """A chain with a gate in the middle that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Conv2d(1, 12, 3, padding=1), Gate(12)
        self.conv1, self.conv2 = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.gate(torch.relu(self.stem(x)))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))
