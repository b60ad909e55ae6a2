"""Parts of the zoo's networks."""

import pytest
import torch
from torch import nn

from decomp.data.zoo_parts import POOL, InvertedResidual, check_size, initialised, vgg
from decomp.errors import UsageError


def test_a_vgg_halves_its_map_at_each_pooling():
    net = vgg((4, POOL, 6, POOL), "small", 0.5)(3, (2, 8, 12))
    assert [type(layer).__name__ for layer in net] == [
        "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Flatten",
        "Dropout", "Linear",
    ]  # fmt: skip
    assert net[-1].in_features == 6 * 2 * 3 and net(torch.zeros(2, 2, 8, 12)).shape == (2, 3)
    with pytest.raises(UsageError, match="zoo:small: .* large enough for its poolings, got 3x8 pixels"):
        vgg((4, POOL, 6, POOL), "small", 0.5)(3, (2, 3, 8))
    check_size("small", (1, 4, 4), 1, 1)


def test_initial_weights_of_convolutions_keep_the_size_of_gradients():
    torch.manual_seed(0)
    net = initialised(nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64)))
    assert net[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert bool((net[1].weight == 1).all())
    # A channel of a depthwise convolution reaches one filter of 25 weights.
    depthwise = initialised(nn.Sequential(nn.Conv2d(400, 400, 5, groups=400)))[0]
    assert depthwise.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.02)


@pytest.mark.parametrize("kernel", [3, 5])
def test_an_inverted_residual_of_any_kernel_keeps_the_map_and_has_a_shortcut_where_shapes_agree(kernel):
    block = InvertedResidual(4, 4, 1, 2, kernel).eval()
    x = torch.randn(2, 4, 7, 6)
    assert torch.equal(block(x), x + block.layers(x))
    assert InvertedResidual(4, 6, 2, 1, kernel)(x).shape == (2, 6, 4, 3)
    # One pixel reaches kernel // 2 pixels to each side.
    x.requires_grad_()
    block(x)[0, 0, 3, 3].backward()
    reached = x.grad[0].abs().sum(0).nonzero()
    assert int((reached - 3).abs().max()) == min(kernel // 2, 3)
