"""Networks of growing width: channels by spaces, leading slices, heads, refusals."""

import pytest
import torch
from torch import nn

from decomp.errors import TraceError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.schemes.cpg_growth import Family, channels_at, grown, initial_weight, leading
from tests.networks import randomise


def family(network, shape=(1, 8, 8), grows=True):
    return Family.of(NetworkGraph(trace(network.eval(), "net", shape=shape), shape, "net"), "net", grows=grows)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 1, 2, bias=False)
        self.one, self.two = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 8, 3, padding=1)
        self.bn, self.prelu, self.head = nn.BatchNorm2d(6), nn.PReLU(8), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.prelu(self.two(torch.relu(self.bn(self.one(x)))) + self.down(x))
        return self.head(x.mean((2, 3)))


def chain():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(96), nn.Linear(96, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip


def test_channels_are_cut_to_whole_numbers_as_published():
    assert channels_at(64, 1.5) == 78 and channels_at(64, 1.0) == 64
    assert [channels_at(16, 4.0), channels_at(9, 2.25)] == [32, 13]
    assert channels_at(1, 0.1) == 1


def test_a_chain_grows_in_its_spaces_and_not_at_image_and_classes():
    network = family(randomise(chain())).build(2.25, 4)
    assert [tuple(module.weight.shape) for module in network.children() if hasattr(module, "weight")] == [
        (6, 1, 3, 3), (6,), (9, 6, 3, 3), (144,), (10, 144), (4, 10),
    ]  # fmt: skip


def test_a_residual_network_grows_through_its_sums():
    found = family(randomise(Residual()))
    assert found.head == "head" and set(found.layers) == {"stem", "down", "one", "two"}
    network = found.build(4.0, 2)
    assert network.down.weight.shape == (16, 8, 1, 1) and network.two.weight.shape == (16, 12, 3, 3)
    assert network.prelu.num_parameters == 16 and network.head.weight.shape == (2, 16)
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 2)


@pytest.mark.parametrize("make", [chain, Residual])
def test_the_leading_slices_of_a_wide_network_are_the_narrow_one_behind_a_flatten_too(make):
    narrow, found = randomise(make()), family(randomise(make()))
    wide, state = found.build(4.0, found.build(1.0, 3).get_submodule(found.head).out_features), {}
    narrow_state = {**found.build(1.0, 3).state_dict()}
    for name, value in wide.state_dict().items():
        kept = narrow.state_dict()[name] if not name.startswith(found.head) else narrow_state[name]
        blank = torch.zeros_like(value) if value.is_floating_point() and "running_var" not in name else value
        state[name] = grown(kept, blank)
    weight = torch.randn(narrow_state[f"{found.head}.weight"].shape)
    state[f"{found.head}.weight"] = grown(weight, state[f"{found.head}.weight"])
    wide.load_state_dict(state)
    small = found.build(1.0, 3)
    small.load_state_dict({n: leading(value, narrow_state[n].shape) for n, value in state.items()})
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(wide(images), small(images), atol=1e-5) and small(images).abs().max() > 0.1


def test_width_one_with_the_same_classes_has_the_shapes_of_the_base():
    found = family(randomise(chain()))
    shapes = {name: value.shape for name, value in found.base.state_dict().items()}
    assert {name: value.shape for name, value in found.build(1.0, 3).state_dict().items()} == shapes


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(8 * 36, 3)

    def forward(self, x):
        return self.head(torch.cat([self.one(x), self.two(x)], 1).flatten(1))


class Reshaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

    def forward(self, x):
        return self.head(self.conv(x).reshape(-1, 144))


def grouped():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (grouped, "net: 1: cannot grow: its convolution has 2 groups; give a largest width of 1"),
        (Joined, "net: head: cannot grow: its input joins 2 channel spaces; give a largest width of 1"),
        (Reshaped, r"net: conv: cannot grow: a channel space of it is reshaped .*; give a largest width of 1"),
    ],
)
def test_networks_that_cannot_grow_are_refused_with_the_reason_and_taken_without_growth(make, reason):
    with pytest.raises(TraceError, match=reason):
        family(make())
    assert family(make(), grows=False).build(1.0, 5)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


def test_a_network_without_one_layer_of_class_scores_is_refused():
    with pytest.raises(TraceError, match="must end in one layer that gives the class scores"):
        family(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), grows=False)
    with pytest.raises(TraceError, match="must have a layer before"):
        family(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), grows=False)


def test_new_weights_have_the_deviation_of_their_initialiser():
    conv = initial_weight((64, 32, 3, 3), torch.Generator().manual_seed(0))
    assert conv.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    linear = initial_weight((200, 100), torch.Generator().manual_seed(0))
    assert linear.std() == pytest.approx((2 / 100) ** 0.5, rel=0.03)
