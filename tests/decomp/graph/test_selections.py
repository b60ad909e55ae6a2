"""Selections of all channels beside batch normalisations: nothing changes but the channel spaces."""

import pytest
import torch
from preactivation import SHAPE, Plain, images, preactivation

from decomp.graph.network_graph import NetworkGraph
from decomp.graph.selections import insert_selections, remove_selections
from decomp.graph.tracing import trace

PATHS = ["block0.bn1", "norm"]


@pytest.mark.parametrize("behind", [False, True])
def test_the_selected_channels_are_a_space_of_their_own_and_the_outputs_are_the_same(behind):
    network = trace(preactivation())
    wanted = network(images())
    insert_selections(network, PATHS, behind=behind)
    assert torch.equal(network(images()), wanted)
    spaces = NetworkGraph(network, SHAPE).spaces
    space = spaces["block0.bn1.select"]
    assert (space.width, space.consumers, space.frozen) == (16, ("block0.conv1",), None)
    assert space.carriers == (() if behind else ("block0.bn1.norm",))
    assert spaces["norm.select"].consumers == ("fc",)
    assert spaces["stem"].frozen.startswith("is read by the selection")


def test_a_selection_that_is_removed_leaves_the_network_as_it_was():
    network = trace(preactivation(Plain(16), Plain(16)))
    before, wanted = network.code, network(images())
    insert_selections(network, [*PATHS, "block1.bn1"])
    assert network.code != before
    remove_selections(network, [*PATHS, "block1.bn1"])
    assert network.code == before and torch.equal(network(images()), wanted)
    assert NetworkGraph(network, SHAPE).spaces["stem"].frozen is None
