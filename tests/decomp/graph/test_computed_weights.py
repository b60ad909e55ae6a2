import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

from decomp.graph.computed_weights import fix_computed_weights
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.modules.copies import deep_copy


class Symmetric(nn.Module):
    def forward(self, w):
        return w + w.flip(3)


class Own(nn.Module):
    """A convolution of its own class, without the name `weight`."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.kernel, padding=1)


def pruned(module):
    prune.l1_unstructured(module, "weight", 0.5)
    prune.random_unstructured(module, "weight", 0.2)
    prune.l1_unstructured(module, "bias", 0.5)
    return module


def conv(n=4, c=3):
    return nn.Conv2d(c, n, 3, padding=1)


KINDS = {
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "weight norm by a hook": lambda: utils.weight_norm(conv()),
    "weight norm without an axis": lambda: utils.weight_norm(conv(), dim=None),
    "spectral norm": lambda: parametrizations.spectral_norm(conv()),
    "spectral norm by a hook": lambda: utils.spectral_norm(conv()),
    "orthogonal": lambda: parametrizations.orthogonal(conv()),
    "two parametrizations": lambda: parametrize.register_parametrization(
        parametrizations.weight_norm(conv()), "weight", Symmetric()
    ),
    "pruned": lambda: pruned(conv()),
    "transposed": lambda: parametrizations.weight_norm(nn.ConvTranspose2d(3, 4, 3, padding=1)),
    "own class": lambda: parametrizations.weight_norm(Own(), "kernel"),
    "own class by a hook": lambda: utils.spectral_norm(Own(), "kernel"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:.*spectral_norm.* is deprecated")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [False, True])
def test_the_weight_is_computed_once_and_the_original_stays(kind, trained):
    torch.manual_seed(0)
    network = nn.Sequential(KINDS[kind](), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 6, 5)
    if trained:
        network(x).sum().backward()
    network.eval()
    state, said = copy.deepcopy(network.state_dict()), repr(network)
    with torch.no_grad():
        wanted = network(x)
        copied = deep_copy(network)
        assert fix_computed_weights(copied) == ["0"] and fix_computed_weights(copied) == []
        assert torch.equal(copied(x), wanted) or torch.allclose(copied(x), wanted, atol=1e-6)
        traced = trace(network, shape=(3, 6, 5))
        assert torch.allclose(traced(x), wanted, atol=1e-6)
    layer = NetworkGraph(traced, (3, 6, 5)).layers
    assert [one.name for one in layer] == ["0", "2"]
    assert type(traced.get_submodule("0")) in (nn.Conv2d, nn.ConvTranspose2d)
    assert set(dict(traced.named_parameters())) <= {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert repr(network) == said and all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_leaves_keep_what_they_compute():
    network = nn.Sequential(parametrizations.weight_norm(conv()), parametrizations.weight_norm(conv(4, 4))).eval()
    assert fix_computed_weights(network, ["1"]) == ["0"]
    assert not parametrize.is_parametrized(network[0]) and parametrize.is_parametrized(network[1])
