"""Group norms: the weights that are missing from the network without a channel, counted two ways."""

import copy

import pytest
import torch
from small_graphs import GRAPHS, INPUT, make
from torch import nn

from decomp.criteria.candidates import candidates
from decomp.criteria.groups import POWERS, group_norm
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import shrink


def size(module, power):
    """Sum of |w|**power over all weights of layers and scale factors, without biases, shifts and slopes."""
    weights = [part.weight for part in module.modules() if hasattr(part, "weight") and not isinstance(part, nn.PReLU)]
    return sum(float(value.detach().double().abs().pow(power).sum()) for value in weights)


@pytest.mark.parametrize("power", POWERS.values())
@pytest.mark.parametrize("name", GRAPHS)
def test_a_channel_counts_as_much_as_the_network_loses_when_it_goes(name, power):
    graph = NetworkGraph(trace(make(name)), INPUT)
    whole = size(graph.module, power)
    for space in candidates(graph.spaces, coupled=True)[:3]:
        found = group_norm(graph.module, graph.spaces, graph.spaces[space], power)
        for channel in (0, len(found) - 1):
            kept = [place for place in range(len(found)) if place != channel]
            smaller = copy.deepcopy(graph.module)
            shrink(smaller, graph.spaces, {space: kept})
            assert float(found[channel]) == pytest.approx(whole - size(smaller, power), rel=1e-5)


def test_weights_from_a_channel_to_itself_count_once():
    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.own, self.head = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.own(x))

    graph = NetworkGraph(trace(Looped()), (1, 4, 4))
    found = group_norm(graph.module, graph.spaces, graph.spaces["stem"], 1)
    for channel in range(3):
        smaller = copy.deepcopy(graph.module)
        shrink(smaller, graph.spaces, {"stem": [place for place in range(3) if place != channel]})
        assert float(found[channel]) == pytest.approx(size(graph.module, 1) - size(smaller, 1), rel=1e-5)


def test_a_channel_with_a_large_filter_that_is_hardly_read_goes_first():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, 2.0]).view(2, 1, 1, 1))
        network[2].weight.copy_(torch.tensor([0.1, 1.0]).expand(3, 2)[:, :, None, None])
    graph = NetworkGraph(trace(network), (1, 4, 4))
    for power, wanted in ((1, [3.3, 5.0]), (2, [9.03, 7.0])):
        found = group_norm(graph.module, graph.spaces, graph.spaces["0"], power)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=0)
