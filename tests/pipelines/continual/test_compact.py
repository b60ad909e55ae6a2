"""Compact networks: unread and constant channels go, and with them what only they read."""

import torch
from torch import nn

from decomp.graph.tracing import trace
from decomp.pipelines.continual.compact import compact
from tests.networks import randomise


def chain(padding=1):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=padding), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * (2 + 2 * padding) ** 2, 3),
    )  # fmt: skip


def weights(network):
    return [tuple(module.weight.shape) for module in network.children() if isinstance(module, (nn.Conv2d, nn.Linear))]


def test_channels_that_nobody_reads_are_removed_one_after_the_other():
    network = randomise(chain())
    with torch.no_grad():
        network[6].weight.view(3, 6, 16)[:, [1, 4]] = 0  # channels 1 and 4 behind the flatten
        network[3].weight[:, 2] = 0
        network[3].weight[[0, 2, 3, 5], 0] = 0  # channel 0 is read for the channels 1 and 4 alone
    images = torch.randn(5, 1, 4, 4)
    small = compact(trace(network), (1, 4, 4))
    assert weights(small) == [(2, 1, 3, 3), (4, 2, 3, 3), (3, 64)] and small.get_submodule("1").num_features == 2
    assert torch.allclose(small(images), network(images), atol=1e-5)


def test_a_filter_without_weights_goes_where_its_constant_can_be_moved():
    network, images = randomise(chain(padding=0)), torch.randn(5, 1, 4, 4)
    with torch.no_grad():
        network[0].weight[[0, 3]] = 0
        network[1].bias[[0, 3]] = 2.0  # the constants are not 0
    small = compact(trace(network), (1, 4, 4))
    assert weights(small)[0] == (2, 1, 3, 3) and network(images).abs().max() > 0.1
    assert torch.allclose(small(images), network(images), atol=1e-5)


def test_beside_zero_padding_only_filters_whose_constant_is_zero_go():
    network, images = randomise(chain(padding=1)), torch.randn(5, 1, 4, 4)
    with torch.no_grad():
        network[0].weight[[0, 3]] = 0
        network[0].bias[[0, 3]] = network[1].running_mean[[0, 3]]
        network[1].bias[0], network[1].bias[3] = 2.0, -2.0  # ReLU makes the second one 0
    small = compact(trace(network), (1, 4, 4))
    assert weights(small)[0] == (3, 1, 3, 3)
    assert torch.allclose(small(images), network(images), atol=1e-5)


def test_a_network_that_uses_all_channels_stays():
    network = trace(randomise(chain()))
    small = compact(network, (1, 4, 4))
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), network.state_dict().values()))


def test_one_channel_stays_where_none_is_read():
    network = randomise(chain())
    with torch.no_grad():
        network[3].weight.zero_()
    small, images = compact(trace(network), (1, 4, 4)), torch.randn(2, 1, 4, 4)
    assert small.get_submodule("0").weight.shape[0] == 1 and torch.allclose(small(images), network(images), atol=1e-6)
