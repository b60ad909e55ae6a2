"""Order of the calls of layers that are called several times."""

import pytest
import shared_layers
import torch
from networks import CHAIN_INPUT, chain
from torch import fx, nn

from decomp.graph.call_order import bring_calls_together, put_in_order
from decomp.graph.tracing import trace


def targets(network):
    return [str(node.target) for node in network.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("name", shared_layers.SHARED)
def test_the_outputs_are_the_same_and_so_are_the_nodes(name):
    network = trace(shared_layers.make(name))
    images = torch.randn(3, *shared_layers.INPUT, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, names = network(images), [node.name for node in network.graph.nodes]
        before = bring_calls_together(network)
        assert [node.name for node in before] == names
        assert sorted(node.name for node in network.graph.nodes) == sorted(names)
        assert torch.equal(network(images), wanted)
        put_in_order(network, before)
        assert [node.name for node in network.graph.nodes] == names and torch.equal(network(images), wanted)


def test_both_calls_of_each_layer_of_an_encoder_follow_each_other():
    network = trace(shared_layers.make("siamese"))
    bring_calls_together(network)
    layers = [target for target in targets(network) if target in ("stem", "a", "b")]
    assert layers == ["stem", "stem", "a", "a", "b", "b"]
    levels = trace(shared_layers.make("pyramid"))
    bring_calls_together(levels)
    assert targets(levels) == ["levels.0", "levels.1", "levels.2"] + 3 * ["tower"] + 3 * ["out"]


def test_a_network_without_such_layers_is_left_as_it_is():
    network = trace(chain())
    before = [node.name for node in network.graph.nodes]
    assert bring_calls_together(network) is None and [node.name for node in network.graph.nodes] == before
    with torch.no_grad():
        assert network(torch.zeros(1, *CHAIN_INPUT)).shape == (1, 5)


class Changed(nn.Module):
    """Values that are read before and after something changes them, or a part of them, in place."""

    def __init__(self, change):
        super().__init__()
        self.conv, self.other, self.change = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), change

    def forward(self, x):
        y = self.other(x)
        first = self.conv(y)
        self.change(y)
        last = self.conv(y)
        return first + last * self.other(last - y)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.mul_(-1), lambda y: nn.functional.relu(y, inplace=True), lambda y: y.view(-1).add_(1),
        lambda y: y[:, 1:].relu_(), lambda y: y.transpose(1, 2).chunk(2, 1)[0].neg_(), lambda y: torch.relu_(y[:, 0]),
    ],
)  # fmt: skip
def test_a_value_that_is_changed_in_place_is_read_before_and_after_as_it_was(change):
    torch.manual_seed(0)
    module = Changed(change).eval()
    network, x = fx.symbolic_trace(module), torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        wanted = module(x)
        assert torch.equal(network(x), wanted)
        bring_calls_together(network)
        assert torch.equal(network(x), wanted)
