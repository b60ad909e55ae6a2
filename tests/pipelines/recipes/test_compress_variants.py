"""Compression of networks with every variant of a convolution, and with operations of many kinds between them.

The filters of the convolutions in question are mixtures of two. Where their inputs, their responses and the operations
around them are handled as torch does, a smaller network that computes the same exists and is found.
"""

import pytest
import torch
from networks import randomise
from torch import nn
from torch.nn import functional as F

import decomp
from decomp.cost.count import cost

SHAPE = (3, 12, 10)


def redundant(conv, seed):
    """Make every filter a mixture of two, in place."""
    mixed = torch.randn(conv.out_channels, 2, generator=torch.Generator().manual_seed(seed))
    conv.weight.data = torch.einsum("nr,rchw->nchw", mixed, conv.weight.data[:2])
    return conv


class Between(nn.Module):
    """Two redundant convolutions with an operation between them."""

    def __init__(self, operation, width, **options):
        super().__init__()
        self.stem, self.a = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 16, **{"kernel_size": 3, "padding": 1, **options}),
        )
        self.operation, self.b = operation, nn.Conv2d(width, 16, 3, padding=1)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.a(F.relu(self.stem(x))))
        return self.out(F.relu(self.b(self.operation(x))).mean((2, 3)))


class Call(nn.Module):
    """A function as a module that is looked into."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class BlockAttention(nn.Module):
    """Attention over channels, from their means and maxima, then over places (CBAM)."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.places = nn.Conv2d(2, 1, 3, padding=1)

    def weigh(self, x):
        return self.wide(F.relu(self.narrow(x)))

    def forward(self, x):
        x = x * torch.sigmoid(self.weigh(F.adaptive_avg_pool2d(x, 1)) + self.weigh(F.adaptive_max_pool2d(x, 1)))
        return x * torch.sigmoid(self.places(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


CONVOLUTIONS = {
    "oblong, strided": {"kernel_size": (5, 3), "stride": (2, 1), "padding": (2, 1)},
    "dilated": {"dilation": (2, 3), "padding": (2, 3)},
    "circular": {"padding_mode": "circular"},
    "reflect": {"padding_mode": "reflect", "kernel_size": 5, "padding": 2},
    "replicate": {"padding_mode": "replicate", "padding": (1, 2), "stride": 2},
    "same, even": {"kernel_size": (4, 2), "padding": "same"},
    "valid, even": {"kernel_size": (2, 4), "padding": "valid"},
    "without a bias": {"bias": False},
}
OPERATIONS = {
    "pixel shuffle": (lambda: nn.PixelShuffle(2), 4),
    "roll": (lambda: Call(lambda x: torch.roll(x, (1, 2), (2, 3))), 16),
    "roll of the channels": (lambda: Call(lambda x: torch.roll(x, 3, 1)), 16),
    "channel padding": (lambda: Call(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3))), 21),
    "block attention": (BlockAttention, 16),
    "group norm": (lambda: nn.GroupNorm(4, 16), 16),
    "unfold": (lambda: Call(lambda x: F.unfold(x, (1, 2), stride=2).unflatten(2, (-1, 5))), 32),
    "norm without affine": (lambda: nn.BatchNorm2d(16, affine=False), 16),
    "instance norm": (lambda: nn.InstanceNorm2d(16), 16),
    "norm without statistics": (lambda: nn.BatchNorm2d(16, track_running_stats=False), 16),
}


def compressed(model, seed=0):
    """The share of the output's variance that is lost, on images that no fit has seen."""
    images = F.interpolate(torch.randn(100, 3, 6, 5, generator=torch.Generator().manual_seed(seed)), SHAPE[1:])
    network, report = decomp.compress(model, images[:80], 1.6, batch_size=80, quiet=True)
    before, after = cost(model, SHAPE).macs, cost(network, SHAPE).macs
    assert type(network) is type(model) and (report.macs_before, report.macs_after) == (before, after)
    assert before / after >= 1.6
    with torch.no_grad():
        wanted, got = model(images[80:]), network(images[80:])
    return float((got - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())


def model_of(operation, width, **options):
    model = randomise(Between(nn.Identity(), width, **options))
    model.operation = operation.eval()
    redundant(model.a, 1)
    redundant(model.b, 2)
    return model


@pytest.mark.parametrize("variant", CONVOLUTIONS)
def test_a_redundant_convolution_of_any_geometry_is_made_smaller_without_a_loss(variant):
    assert compressed(model_of(nn.Identity(), 16, **CONVOLUTIONS[variant])) < 1e-5


@pytest.mark.parametrize("operation", OPERATIONS)
def test_redundant_convolutions_around_any_operation_are_made_smaller_without_a_loss(operation):
    make, width = OPERATIONS[operation]
    assert compressed(model_of(make(), width)) < 1e-5
