"""Published shapes, by counting: no image is computed, and weights are never made."""

import pytest
import torch
from torch import nn

from decomp.cost.count import cost
from decomp.data import zoo
from decomp.data.zoo_published import PUBLISHED, mlp_bn

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def counted(name):
    """Multiply-accumulates, parameters, channels of normalisations, and numbers in convolutions and linear layers."""
    with torch.device("meta"):
        module = zoo.build(name).eval()
        found = cost(module, zoo.find(name).input_shape)
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    channels = sum(layer.num_features for layer in module.modules() if isinstance(layer, BATCHNORMS))
    weights = sum(layer.weight.numel() for layer in layers)
    biases = sum(layer.bias.numel() for layer in layers if layer.bias is not None)
    return found.macs, found.params, channels, weights, biases


def test_vgg16_has_the_counts_of_the_pruning_paper():
    """Li et al. 2017, table 1: 3.13e8 multiply-accumulates and 1.5e7 weights."""
    macs, _, _, weights, _ = counted("vgg16-cifar")
    assert (macs, weights) == (313_463_808, 14_977_728)


@pytest.mark.parametrize(
    ("name", "macs", "numbers"),
    [("resnet56-cifar", 125_485_696, 848_954), ("resnet110-cifar", 252_887_680, 1_719_866)],
)
def test_resnets_have_the_counts_of_the_pruning_paper(name, macs, numbers):
    """Li et al. 2017, table 1: 1.25e8 and 8.5e5; 2.53e8 and 1.72e6."""
    found, _, _, weights, biases = counted(name)
    assert (found, weights + biases) == (macs, numbers)


def test_vgg19_has_the_counts_of_network_slimming():
    """Liu et al. 2017, table 1: 20.04 M parameters, and 7.97e8 operations, which are two per multiply-accumulate."""
    macs, params, channels, _, _ = counted("vgg19-cifar")
    assert (macs, params, channels) == (398_136_320, 20_035_018, 5_504)
    assert 2 * macs == pytest.approx(7.97e8, rel=2e-3)


def test_resnet164_has_the_channels_of_network_slimming():
    """Liu et al. 2017, table 1: 1.70 M parameters, 4.99e8 operations."""
    macs, params, channels, _, _ = counted("preresnet164-cifar")
    assert (params, channels) == (1_703_258, 12_112)
    assert 2 * macs == pytest.approx(4.99e8, rel=1e-2)
    with torch.device("meta"):
        module = zoo.build("preresnet164-cifar")
    features = [layer.num_features for layer in module.modules() if isinstance(layer, BATCHNORMS)]
    first, *rest = ([[16, 16, 16]] + [[64, 16, 16]] * 17, [[64, 32, 32]] + [[128, 32, 32]] * 17,
                    [[128, 64, 64]] + [[256, 64, 64]] * 17, [[256]])  # fmt: skip
    assert features == [width for stage in (first, *rest) for block in stage for width in block]


def test_densenet40_has_the_counts_of_network_slimming():
    """Liu et al. 2017, table 1: 1.02 M parameters, 5.33e8 operations."""
    macs, params, _, _, _ = counted("densenet40-cifar")
    assert params == 1_019_722 and 2 * macs == pytest.approx(5.33e8, rel=1e-2)


def test_the_mlp_loses_84_percent_of_its_weights_with_80_percent_of_its_neurons():
    """784-500-300-10 to 784-100-60-10 (Liu et al. 2017, table 2)."""
    with torch.device("meta"):
        layers = [layer for layer in mlp_bn(10, (1, 28, 28)) if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(784, 500), (500, 300), (300, 10)]
    whole = sum(layer.weight.numel() for layer in layers)
    assert whole == counted("mlp-bn")[0]
    assert round(100 * (1 - (784 * 100 + 100 * 60 + 60 * 10) / whole), 2) == 84.40


def test_shortcuts_without_weights_take_every_second_pixel_and_add_zeros():
    block = PUBLISHED["resnet56-cifar"](10, (3, 8, 8))[3 + 9]
    with torch.no_grad():
        block.bn2.weight.zero_()  # the other branch is 0
        x = torch.rand(2, 16, 8, 8)
        y = block.eval()(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and float(y[:, :8].abs().sum() + y[:, 24:].abs().sum()) == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_come_without_weights_and_with_the_published_training(name):
    entry = zoo.find(name)
    assert entry.weights is None and entry.dataset == "cifar10" and entry.recipe["epochs"] == 160
