"""Networks with masked layers against smaller networks."""

import copy

import pytest
import torch
from networks import CHAIN_INPUT, chain
from small_graphs import GRAPHS, INPUT, make
from torch import nn
from torch.nn import functional as F

from decomp.errors import DecompError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.modules.masked import MaskedConv2d, MaskedLinear
from decomp.surgery.batchnorm import fold_bn
from decomp.surgery.masked_layers import put_masks
from decomp.surgery.narrow_network import shrink


def every_second(spaces):
    return {s.name: list(range(0, s.width, 2)) for s in spaces.all if s.frozen is None}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", [*GRAPHS, "chain"])
def test_masked_layers_give_what_the_smaller_network_gives(name, folded):
    network, shape = (trace(chain()), CHAIN_INPUT) if name == "chain" else (trace(make(name)), INPUT)
    if folded:
        fold_bn(network)
    spaces = NetworkGraph(network, shape).spaces
    masked, small, keep = copy.deepcopy(network), copy.deepcopy(network), every_second(spaces)
    shrink(small, spaces, keep)
    if name in ("grouped", "u-net"):
        with pytest.raises(DecompError, match="has no masked form; keep all channels that it reads and writes"):
            put_masks(masked, spaces, keep)
        assert not any(isinstance(m, (MaskedConv2d, MaskedLinear)) for m in masked.modules())
        return
    assert put_masks(masked, spaces, keep)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(masked(x), small(x), rtol=1e-5, atol=1e-5)
        assert (masked(x) - network(x)).abs().max() > 1e-3


def test_a_mask_without_the_bias_is_another_network():
    """The fault of masks on the weight alone: what a dropped channel adds by its bias is still read."""

    class WeightOnly(nn.Conv2d):
        def forward(self, x):
            weight = self.weight * torch.tensor([1.0, 0, 1, 0, 1, 0]).view(-1, 1, 1, 1)
            return F.conv2d(x, weight, self.bias)

    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)))
    with torch.no_grad():
        network.get_submodule("0").bias.fill_(0.5)
    spaces, x = NetworkGraph(network, (2, 8, 8)).spaces, torch.randn(2, 2, 8, 8)
    small, masked, wrong = (copy.deepcopy(network) for _ in range(3))
    shrink(small, spaces, {"0": [0, 2, 4]})
    put_masks(masked, spaces, {"0": [0, 2, 4]})
    wrong.get_submodule("0").__class__ = WeightOnly
    with torch.no_grad():
        torch.testing.assert_close(masked(x), small(x))
        assert (wrong(x) - small(x)).abs().max() > 0.05
    assert isinstance(masked.get_submodule("0"), MaskedConv2d)


def test_masked_layers_share_the_parameters_of_the_network():
    network = trace(make("dilated"))
    parameters = {id(p) for p in network.parameters()}
    put_masks(network, NetworkGraph(network, INPUT).spaces, {"a.0": [0, 1]})
    assert {id(p) for p in network.parameters()} == parameters
