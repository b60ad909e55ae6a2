"""Channel selection behind normalisations of a stream: the note's bottleneck, and the smaller form bit for bit."""

import pytest
import torch
from networks import randomise
from preactivation import SHAPE, Bottleneck, Plain, images, preactivation
from torch import nn

from decomp.errors import DecompError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.modules.select import Select
from decomp.surgery.channel_selection import fold_select, select_behind
from decomp.surgery.narrow_network import shrink

KEPT = [0, 2, 3, 5, 8, 11, 12, 15]


def selected(*blocks):
    network = trace(preactivation(*blocks))
    changed = select_behind(network, SHAPE, {"block0.bn1": KEPT, "norm": [1, 6, 7]})
    return network, changed


def test_the_bottleneck_reads_8_of_16_channels_and_writes_7_10_and_64():
    network, changed = selected(Bottleneck())
    assert changed == ["block0.bn1", "norm", "block0.conv1", "fc"]
    spaces = NetworkGraph(network, SHAPE).spaces
    shrink(network, spaces, {"block0.conv1": range(7)})
    block = network.block0
    assert type(block.bn1.norm) is nn.BatchNorm2d and block.bn1.norm.num_features == 16
    assert str(block.bn1.select) == "Select(8 of 16)" and block.bn1.select.index.tolist() == KEPT
    sizes = [(conv.in_channels, conv.out_channels) for conv in (block.conv1, block.conv2, block.conv3)]
    assert sizes == [(8, 7), (7, 10), (10, 64)] and block.bn2.num_features == 7
    assert (block.downsample.in_channels, block.downsample.out_channels) == (16, 64)  # the stream keeps its widths
    assert network.fc.in_features == 12 and network(images()).shape == (3, 5)


def test_selecting_equals_zero_weights_for_the_other_channels():
    whole = preactivation(Bottleneck())
    wanted = preactivation(Bottleneck())
    with torch.no_grad():
        wanted.block0.conv1.weight[:, [i for i in range(16) if i not in KEPT]] = 0
        wanted.fc.weight.view(5, 64, 4)[:, [i for i in range(64) if i not in (1, 6, 7)]] = 0
    assert (wanted(images()) - whole(images())).abs().max() > 1e-2
    network, _ = selected(Bottleneck())
    torch.testing.assert_close(network(images()), wanted(images()), rtol=1e-5, atol=1e-5)


def test_selecting_all_channels_reproduces_the_network():
    network = trace(preactivation(Plain(16)))
    wanted = network(images())
    select_behind(network, SHAPE, {"block0.bn1": range(16), "norm": range(16)})
    assert torch.equal(network(images()), wanted)


@pytest.mark.parametrize("training", [False, True])
def test_a_selection_before_a_smaller_normalisation_is_equal_bit_for_bit(training):
    noted, _ = selected(Bottleneck(), Plain(64))
    folded, _ = selected(Bottleneck(), Plain(64))
    assert fold_select(folded) == ["block0.bn1", "norm"]
    assert list(dict(folded.block0.bn1.named_children())) == ["select", "norm"]
    assert folded.block0.bn1.norm.num_features == 8
    assert sum(p.numel() for p in noted.parameters()) - sum(p.numel() for p in folded.parameters()) == 2 * (8 + 61)
    noted.train(training), folded.train(training)
    x = images().requires_grad_()
    gradients = []
    for network in (noted, folded):
        x.grad = None
        outputs = network(x)
        outputs.square().sum().backward()
        gradients.append((outputs, x.grad.clone(), network.block0.conv1.weight.grad, network.block0.bn1.norm))
    (first, dx, dw, norm), (second, dx2, dw2, small) = gradients
    assert torch.equal(first, second) and torch.equal(dx, dx2) and torch.equal(dw, dw2)
    assert torch.equal(norm.running_mean[KEPT], small.running_mean) and torch.equal(
        norm.weight.grad[KEPT], small.weight.grad
    )


def test_a_module_that_is_not_traced_folds_alike():
    pair = nn.Sequential(randomise(nn.BatchNorm2d(4)), Select.of(torch.tensor([0, 3]), 4))
    network, x = nn.Sequential(nn.ReLU(), pair), torch.randn(2, 4, 3, 3)
    wanted = network(x)
    assert fold_select(network) == ["1"] and torch.equal(network(x), wanted) and fold_select(network) == []


def test_the_selected_places_are_no_parameters_and_can_be_traced_again():
    network, _ = selected(Plain(16))
    assert all("select" not in name for name, _ in network.named_parameters())
    again = trace(network)
    assert torch.equal(again(images()), network(images()))
    assert NetworkGraph(again, SHAPE).spaces["block0.bn1.select"].width == 8


def test_channels_that_a_sum_needs_are_refused_and_nothing_changes():
    network = trace(nn.Sequential(nn.Conv2d(3, 4, 1), Added(), nn.Conv2d(4, 2, 1)))
    before = network.code
    with pytest.raises(DecompError, match="1.norm: .* in a sum"):
        select_behind(network, SHAPE, {"1.norm": [0, 1]})
    network = trace(preactivation(Plain(16)))
    with pytest.raises(DecompError, match="channels to keep must ascend in 0..15"):
        select_behind(network, SHAPE, {"norm": [3, 2]})
    with pytest.raises(DecompError, match="at least one"):
        select_behind(network, SHAPE, {"norm": []})
    assert "select" not in network.code and "select" not in before


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(self.norm(x)) + x
