"""Removal of channels: masks and cost by formula agree with the narrower network on every small graph."""

import pytest
import torch
from networks import block
from small_graphs import GRAPHS, INPUT, make

from decomp.cost.count import cost
from decomp.errors import TargetError
from decomp.modules.copies import deep_copy
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.pruning.plan_file import PruningPlan, prune_options
from decomp.pipelines.pruning.removal import remove
from decomp.pipelines.pruning.unfolded import folded_copy, unfolded
from decomp.surgery.narrow_network import mask


def removed(source, given=None, **options):
    return remove(
        source, prune_options(given, **options), given, device=torch.device("cpu"), reporter=Reporter(quiet=True)
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graphs_are_half_as_expensive_by_formula_and_by_count(name):
    source = unfolded(make(name), name, INPUT)
    made = removed(source, speedup=2, coupled=True)
    after = cost(folded_copy(made.network), INPUT)
    assert (made.planned.macs, made.planned.params) == (after.macs, after.params)
    assert made.before.macs / after.macs >= 2
    images = torch.randn(2, *INPUT)
    masked = deep_copy(source.network)
    mask(masked, source.graph.spaces, made.keep)
    torch.testing.assert_close(made.network(images), masked(images), rtol=1e-4, atol=1e-4)


def test_nothing_removed_is_the_network_itself():
    source = unfolded(block(), "block", (3, 8, 8))
    made = removed(source, ratio=0)
    images = torch.randn(2, 3, 8, 8)
    assert made.keep == {} and made.planned.macs == made.before.macs
    assert torch.equal(made.network(images), block()(images))


def test_a_given_plan_decides_and_the_source_stays():
    source = unfolded(block(), "block", (3, 8, 8))
    made = removed(source, PruningPlan({"conv1": [2, 5]}, {"conv1": 12}))
    weight = source.network.get_submodule("conv1").weight
    assert weight.shape[0] == 12 and torch.equal(made.network.get_submodule("conv1").weight, weight[[2, 5]])
    assert torch.equal(
        made.network.get_submodule("bn1").running_mean, source.network.get_submodule("bn1").running_mean[[2, 5]]
    )
    assert made.widths == {"conv1": 12} and "conv1" in made.changed and "bn1" in made.changed


def test_a_network_without_channels_that_can_go_says_why():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten())
    with pytest.raises(
        TargetError, match="no channel of this network can be removed, got 0: it is the network's output"
    ):
        removed(unfolded(network, "net", (1, 8, 8)), ratio=0.5)


def test_limits_are_told():
    made = removed(unfolded(block(), "block", (3, 8, 8)), ratio=0.9, floor=0.5)
    words = "kept from losing more channels by the limits of a layer: conv1"
    assert made.notes == (f"{words} (with --remove-branches the branches of conv1 could go as a whole)",)


def test_the_share_that_went_is_that_of_all_channels_which_may_go():
    source = unfolded(block(), "block", (3, 8, 8))
    assert removed(source, ratio=0.9, floor=0.5).share == 0.5
    assert removed(source, ratio=0.25).share == 0.25
    assert removed(source, PruningPlan({"conv1": [2, 5]}, {"conv1": 12})).share is None


def test_limits_that_keep_all_channels_are_refused_and_named_as_options():
    source = unfolded(block(), "block", (3, 8, 8))
    with pytest.raises(TargetError, match="--ratio: no channel goes, .*, got 0.5; loosen --floor, --cap"):
        removed(source, ratio=0.5, cap=0.0)
    with pytest.raises(TargetError, match="^--speedup: at most"):
        removed(source, speedup=1000)
    with pytest.raises(TargetError, match="^--ratio: at most"):
        removed(source, ratio=0.95, ranking="global")
