"""Sizes that publications and their recounts give for pruned networks, reached by the same shares of channels."""

import pytest
import torch
from torch import nn

from decomp.cost.count import cost
from decomp.criteria.candidates import candidates
from decomp.criteria.choose import by_layer
from decomp.criteria.scores import score
from decomp.data import zoo
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import shrink, shrunk_macs, shrunk_params

IMAGES = (3, 32, 32)


def numbers(network, biases=False):
    """Weights of convolutions and linear layers, perhaps with their biases."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return sum(m.weight.numel() + (m.bias.numel() if biases and m.bias is not None else 0) for m in layers)


def pruned(module, ratios, biases=False):
    """Multiply-accumulates and numbers before and after dropping shares by norms, with the formulas checked."""
    network = trace(module)
    spaces = NetworkGraph(network, IMAGES).spaces
    before = cost(network, IMAGES)
    sizes = [(before.macs, numbers(network, biases))]
    assert set(ratios) <= set(candidates(spaces))
    choice = by_layer(score(network, spaces, list(ratios), "l1"), ratios)
    planned = shrunk_macs(spaces, choice.keep, before.per_layer), shrunk_params(network, spaces, choice.keep)
    shrink(network, spaces, choice.keep)
    after = cost(network, IMAGES)
    assert (after.macs, after.params) == planned
    with torch.no_grad():
        assert network(torch.zeros(2, *IMAGES)).shape == (2, 10)
    return *sizes, (after.macs, numbers(network, biases)), choice


def lost(before, after):
    return [round(100 * (1 - a / b), 1) for b, a in zip(before, after)]


def test_vgg16_a_loses_half_of_the_filters_of_the_first_and_of_the_last_six_layers():
    """Li et al. 2017, table 1: 34.2 % of the multiply-accumulates and 64.0 % of the weights."""
    module = zoo.build("vgg16-cifar")
    convolutions = [str(i) for i, m in enumerate(module) if isinstance(m, nn.Conv2d)]
    before, after, choice = pruned(module, dict.fromkeys([convolutions[0], *convolutions[7:]], 0.5))
    assert before == (313_463_808, 14_977_728) and after == (206_279_680, 5_390_176)
    assert lost(before, after) == [34.2, 64.0]
    assert list(choice.counts.values()) == [32] + [256] * 6


def first_convolutions(n, skip):
    """Paths of the first convolution of each block but the skipped ones, by stage of n blocks.

    Layers are counted as Li et al. 2017 do: from 1 at the stem, so that the first of a block has an even number.
    """
    return [[f"{3 + i}.conv1" for i in range(s * n, (s + 1) * n) if 2 + 2 * i not in skip] for s in range(3)]


@pytest.mark.parametrize(
    "name, shares, skip, whole, small, percent",
    [
        ("resnet56-cifar", (0.1, 0.1, 0.1), (16, 20, 38, 54),
         (125_485_696, 848_954), (112_435_840, 769_466), [10.4, 9.4]),
        ("resnet56-cifar", (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54),
         (125_485_696, 848_954), (90_907_264, 732_026), [27.6, 13.8]),
        ("resnet110-cifar", (0.5, 0.0, 0.0), (36,),
         (252_887_680, 1_719_866), (212_779_648, 1_680_698), [15.9, 2.3]),
        ("resnet110-cifar", (0.5, 0.4, 0.3), (36, 38, 74),
         (252_887_680, 1_719_866), (155_124_352, 1_161_722), [38.7, 32.5]),
    ],
)  # fmt: skip
def test_resnets_lose_the_published_shares_of_their_first_convolutions(name, shares, skip, whole, small, percent):
    stages = first_convolutions(9 if name == "resnet56-cifar" else 18, skip)
    ratios = {path: share for stage, share in zip(stages, shares) for path in stage}
    before, after, choice = pruned(zoo.build(name).eval(), ratios, biases=True)
    assert before == whole and after == small and lost(before, after) == percent
    assert choice.limited == ()


def test_an_mlp_loses_80_percent_of_its_units_and_84_4_percent_of_its_parameters():
    units = [nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10)]
    network = trace(nn.Sequential(nn.Flatten(), *units))
    spaces = NetworkGraph(network, (1, 28, 28)).spaces
    choice = by_layer(score(network, spaces, ["1", "3"], "l1"), 0.8)
    assert choice.counts == {"1": 100, "3": 60}
    n = shrunk_params(network, spaces, choice.keep)
    assert (sum(p.numel() for p in network.parameters()), n) == (545_810, 85_170)
    assert round(100 * (1 - n / 545_810), 2) == 84.4


def test_shortcuts_that_pad_channels_hold_the_streams_of_all_stages():
    spaces = NetworkGraph(trace(zoo.build("resnet56-cifar")), IMAGES).spaces
    inner = [path for stage in first_convolutions(9, ()) for path in stage]
    assert candidates(spaces) == candidates(spaces, coupled=True) == inner
