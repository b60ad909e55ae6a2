"""Compact networks: unread channels go, and with them what only they read."""

import torch
from torch import nn

from decomp.graph.tracing import trace
from decomp.pipelines.continual.compact import compact
from tests.networks import randomise


def chain():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 3),
    )  # fmt: skip


def test_channels_that_nobody_reads_are_removed_one_after_the_other():
    network = randomise(chain())
    with torch.no_grad():
        network[6].weight.view(3, 6, 16)[:, [1, 4]] = 0  # channels 1 and 4 behind the flatten
        network[3].weight[:, 2] = 0
        network[3].weight[[0, 2, 3, 5], 0] = 0  # channel 0 is read for the channels 1 and 4 alone
    images = torch.randn(5, 1, 4, 4)
    small = compact(trace(network), (1, 4, 4))
    assert small.get_submodule("0").weight.shape == (2, 1, 3, 3) and small.get_submodule("1").num_features == 2
    assert small.get_submodule("3").weight.shape == (4, 2, 3, 3) and small.get_submodule("6").weight.shape == (3, 64)
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
