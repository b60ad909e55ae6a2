"""Statistics of activations against numbers worked out from the outputs themselves."""

import pytest
import torch
from networks import block, randomise
from torch import nn

from decomp.criteria.names import STATISTICS
from decomp.criteria.statistics import activation_statistics
from decomp.errors import UsageError


def images(n=7):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("part", [1 << 22, 2000])
def test_statistics_are_those_of_the_outputs_before_the_normalisation(part, monkeypatch):
    monkeypatch.setattr("decomp.criteria.statistics._PART", part)
    network = block()
    with torch.no_grad():
        x = network.conv1(torch.relu(network.stem(images()))).double().flatten(2)
    norms = x.square().sum(2).sqrt()
    wanted = {
        "mean-mean": x.mean((0, 2)), "mean-std": x.std(2, correction=0).mean(0), "mean-l1": x.abs().sum(2).mean(0),
        "mean-l2": norms.mean(0), "var-l2": norms.var(0, correction=0),
    }  # fmt: skip
    network.train()
    found = activation_statistics(network, ["conv1"], images().split([3, 3, 1]))["conv1"]
    assert network.training and not network.conv1._forward_hooks
    assert tuple(found) == STATISTICS
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)


def test_the_output_of_a_linear_layer_is_a_map_of_one_pixel():
    layer = randomise(nn.Sequential(nn.Linear(3, 4)))
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    found = activation_statistics(layer, ["0"], [x])["0"]
    with torch.no_grad():
        y = layer(x).double()
    torch.testing.assert_close(found["mean-mean"], y.mean(0))
    torch.testing.assert_close(found["mean-l2"], y.abs().mean(0))
    assert found["mean-std"].tolist() == [0] * 4


def test_all_calls_of_a_layer_count():
    layer = nn.Conv2d(2, 2, 1)
    both = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(3, 2, 4, 4)
    with torch.no_grad():
        first = layer(x)
        maps = torch.cat([first, layer(first.relu())])
    found = activation_statistics(both, ["0"], [x])["0"]
    torch.testing.assert_close(found["mean-mean"], maps.double().mean((0, 2, 3)))


def test_no_images_are_refused():
    with pytest.raises(UsageError, match="images: at least one image is needed for statistics of activations, got"):
        activation_statistics(block(), ["conv1"], [])
