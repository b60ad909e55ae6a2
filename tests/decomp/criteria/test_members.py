"""Members of a channel space: layers, projections, and sums per channel."""

import numpy as np
import pytest
import torch
from small_graphs import INPUT, make
from torch import nn
from torch.nn import functional as F

from decomp.criteria.members import per_channel, places_in, projections, writers
from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace


def space(roots):
    return ChannelSpace("s", np.array(roots), ("a",), (), (), (), None)


def test_places_follow_the_order_of_the_space():
    assert places_in(space([7, 3, 9]), np.array([3, 9, 4, 7, 100, 0])).tolist() == [1, 2, -1, 0, -1, -1]


def test_numbers_of_a_channel_are_summed_or_averaged_over_all_members():
    parts = [(np.array([7, 3, 4]), torch.tensor([1.0, 2.0, 50.0])), (np.array([3, 3]), torch.tensor([10.0, 30.0]))]
    assert per_channel(space([7, 3, 9]), parts, mean=False).tolist() == [1, 42, 0]
    assert per_channel(space([7, 3, 9]), parts, mean=True).tolist() == [1, 14, 0]


def test_depthwise_convolutions_belong_to_the_layers_of_a_space():
    graph = NetworkGraph(trace(make("depthwise separable")), INPUT)
    assert writers(graph.module, graph.spaces, graph.spaces["expand.0"]) == ("expand.0", "depthwise.0")
    assert writers(graph.module, graph.spaces, graph.spaces["last.0"]) == ("last.0",)


class Stages(nn.Module):
    """Two stages: a bottleneck block with a projection, and an identity block with three layers in a row."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two, self.three = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 16, 1)
        self.down = nn.Conv2d(8, 16, 1)
        self.four, self.five = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        if self.order:
            short, long = self.down(x), self.three(F.relu(self.two(F.relu(self.one(x)))))
        else:
            long, short = self.three(F.relu(self.two(F.relu(self.one(x))))), self.down(x)
        x = F.relu(long + short)
        x = F.relu(x + self.five(F.relu(self.four(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("order", [True, False])
def test_the_layer_on_the_short_way_around_a_block_is_its_projection(order):
    graph = NetworkGraph(trace(Stages(order)), INPUT)
    (stage,) = graph.spaces.written_by("three")
    assert set(stage.producers) == {"down", "three", "five"}
    assert projections(graph.spaces, stage) == ("down",)


@pytest.mark.parametrize("name", ["residual", "grouped", "squeeze-excite", "twice", "dense"])
def test_networks_without_projections_have_none(name):
    graph = NetworkGraph(trace(make(name)), INPUT)
    assert all(projections(graph.spaces, one) == () for one in graph.spaces.all)
