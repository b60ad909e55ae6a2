"""Sizes that publications and their recounts give for pruned networks, reached by the same shares of channels."""

import pytest
import torch
from published_networks import IMAGES, first_convolutions, resnet, vgg16
from torch import nn

from decomp.cost.count import cost
from decomp.criteria.candidates import candidates
from decomp.criteria.choose import by_layer
from decomp.criteria.scores import score
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import shrink, shrunk_macs, shrunk_params


def weights(network):
    """Weights of convolutions and linear layers, with the bias of the last one where it follows a pooling."""
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


def pruned(module, ratios, shape=IMAGES):
    """The traced network before and after dropping shares of channels by their norms, with the formulas checked."""
    network = trace(module)
    spaces = NetworkGraph(network, shape).spaces
    before, n_weights = cost(network, shape), weights(network)
    assert set(ratios) <= set(candidates(spaces))
    choice = by_layer(score(network, spaces, list(ratios), "l1"), ratios)
    planned = shrunk_macs(spaces, choice.keep, before.per_layer), shrunk_params(network, spaces, choice.keep)
    shrink(network, spaces, choice.keep)
    after = cost(network, shape)
    assert (after.macs, after.params) == planned
    with torch.no_grad():
        assert network(torch.zeros(2, *shape)).shape == (2, 10)
    return (before.macs, n_weights), (after.macs, weights(network)), choice


def lost(before, after):
    return [round(100 * (1 - a / b), 1) for b, a in zip(before, after)]


def test_vgg16_a_loses_half_of_the_filters_of_the_first_and_of_the_last_six_layers():
    convolutions = [str(i) for i, m in enumerate(vgg16()) if isinstance(m, nn.Conv2d)]
    ratios = dict.fromkeys([convolutions[0], *convolutions[7:]], 0.5)
    before, after, choice = pruned(vgg16(), ratios)
    assert before == (313_463_808, 14_977_728) and after == (206_279_680, 5_390_176)
    assert lost(before, after) == [34.2, 64.0]
    assert list(choice.counts.values()) == [32] + [256] * 6


@pytest.mark.parametrize(
    "depth, shares, skip, whole, small, percent",
    [
        (56, (0.1, 0.1, 0.1), (16, 20, 38, 54), (125_485_696, 848_954), (112_435_840, 769_466), [10.4, 9.4]),
        (56, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54), (125_485_696, 848_954), (90_907_264, 732_026), [27.6, 13.8]),
        (110, (0.5, 0.0, 0.0), (36,), (252_887_680, 1_719_866), (212_779_648, 1_680_698), [15.9, 2.3]),
        (110, (0.5, 0.4, 0.3), (36, 38, 74), (252_887_680, 1_719_866), (155_124_352, 1_161_722), [38.7, 32.5]),
    ],
)  # fmt: skip
def test_resnets_lose_the_published_shares_of_their_first_convolutions(depth, shares, skip, whole, small, percent):
    stages = first_convolutions(depth, skip)
    ratios = {path: share for stage, share in zip(stages, shares) for path in stage}
    before, after, choice = pruned(resnet(depth), ratios)
    # The counts of parameters are those of convolutions and the classifier with its bias.
    before, after = (before[0], before[1] + 10), (after[0], after[1] + 10)
    assert before == whole and after == small and lost(before, after) == percent
    assert choice.limited == ()


def test_an_mlp_loses_80_percent_of_its_units_and_84_4_percent_of_its_parameters():
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10)
    )
    network = trace(mlp)
    spaces = NetworkGraph(network, (1, 28, 28)).spaces
    choice = by_layer(score(network, spaces, ["1", "3"], "l1"), 0.8)
    assert choice.counts == {"1": 100, "3": 60}
    n = shrunk_params(network, spaces, choice.keep)
    assert (sum(p.numel() for p in network.parameters()), n) == (545_810, 85_170)
    assert round(100 * (1 - n / 545_810), 2) == 84.4


def test_blocks_without_projections_keep_their_streams():
    """Shortcuts that pad channels hold the streams of all stages in place."""
    spaces = NetworkGraph(trace(resnet(20)), IMAGES).spaces
    inner = [path for stage in first_convolutions(20, ()) for path in stage]
    assert candidates(spaces) == candidates(spaces, coupled=True) == inner
