"""The footprint of a network against sums by hand and against what a pass really holds."""

import torch
from networks import CHAIN_INPUT, block, chain
from torch import nn

from decomp.cost.count import cost
from decomp.execution import footprint
from decomp.graph.tracing import trace


def measured(module, shape):
    module = trace(module.eval())
    return module, footprint.measure(module, torch.randn(1, *shape))


def test_a_small_network_by_hand():
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    network, foot = measured(module, (1, 4, 4))
    macs = {"_0": 2 * 16 * 9, "_4": 8 * 3}
    whole = sum(macs.values())
    assert foot.work == [macs.get(node.name, 0) / whole for node in network.graph.nodes]
    image, maps, pooled, scores = 16 * 4, 32 * 4, 8 * 4, 3 * 4
    assert foot.total == image + 2 * maps + 2 * pooled + scores + scores  # what is returned counts as a value
    assert foot.live == 2 * maps == foot.largest


def test_the_work_is_that_of_the_counted_cost():
    for module, shape in ((chain(), CHAIN_INPUT), (block(), (3, 8, 8))):
        network, foot = measured(module, shape)
        layers = cost(network, shape)
        assert abs(sum(foot.work) - 1) < 1e-12 and foot.macs == layers.macs
        dear = max(layers.per_layer, key=layers.per_layer.get)
        place = [node.target for node in network.graph.nodes].index(dear)
        assert abs(foot.work[place] - layers.per_layer[dear] / layers.macs) < 1e-9
        assert foot.largest <= foot.live <= foot.total


def test_a_value_that_is_needed_later_counts_until_then():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return x + self.two(self.one(x))

    _, foot = measured(Skip(), (2, 5, 5))
    size = 2 * 25 * 4
    # x, what one gives, what two gives.
    assert foot.live == 3 * size and foot.largest == 3 * size and foot.total == 5 * size


def test_a_network_without_sums_is_shared_evenly():
    network, foot = measured(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), (1, 4, 4))
    assert foot.work == [1 / 4] * 4


def test_what_a_backward_pass_needs_by_hand():
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3)]
    module, image = nn.Sequential(*layers).eval(), torch.randn(1, 1, 4, 4)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    maps = 32 * 4
    # The image for the convolution, what ReLU gives (once, though two layers keep it), what the linear layer reads.
    assert footprint.training_bytes(module, image) == 16 * 4 + 2 * maps + footprint.IN_FLIGHT * maps
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_a_backward_pass_needs_grows_with_the_images():
    one, three = (footprint.training_bytes(chain().eval(), torch.randn(n, *CHAIN_INPUT)) for n in (1, 3))
    assert 2.9 * one < three <= 3 * one
