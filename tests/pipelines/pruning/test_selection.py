"""Pruning by scale factors where streams must keep their width: selections, plans and what is left of them."""

import pytest
import torch
from preactivation import SHAPE, Bottleneck, Plain, images, preactivation

from decomp.cost.count import cost
from decomp.data import zoo
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.pruning.plan_file import PruningPlan, prune_options
from decomp.pipelines.pruning.removal import remove
from decomp.pipelines.pruning.selection import with_selections
from decomp.pipelines.pruning.unfolded import folded_copy, unfolded


def pruned(network, given=None, shape=SHAPE, **options):
    source = unfolded(network, "net", shape)
    options = prune_options(given, **options)
    return remove(source, options, given, device=torch.device("cpu"), reporter=Reporter(quiet=True))


def slimmed():
    """Half of the scale factors of the first stream, and a third of the inner ones, are 0, and so are their shifts."""
    network = preactivation(Bottleneck(), Plain(64))
    with torch.no_grad():
        for norm, channels in ((network.block0.bn1, [1, 4, 6, 7, 9, 10, 13, 14]), (network.block0.bn2, [2]),
                               (network.norm, range(3, 64, 2))):  # fmt: skip
            norm.weight[list(channels)] = 0
            norm.bias[list(channels)] = 0
    return network


def test_channels_whose_scale_is_zero_go_first_and_the_outputs_stay():
    network = slimmed()
    made = pruned(network, criterion="bn-scale", ratio=(8 + 1 + 31) / (16 + 8 + 10 + 64 + 64 + 64) + 1e-6)
    assert made.keep["block0.bn1.select"] == [0, 2, 3, 5, 8, 11, 12, 15]
    assert made.keep["block0.conv1"] == [0, 1, 3, 4, 5, 6, 7] and len(made.keep["norm.select"]) == 33
    assert set(made.keep) == {"block0.bn1.select", "block0.conv1", "norm.select"}
    block = made.network.block0
    sizes = [(conv.in_channels, conv.out_channels) for conv in (block.conv1, block.conv2, block.conv3)]
    assert sizes == [(8, 7), (7, 10), (10, 64)] and block.downsample.in_channels == 16
    torch.testing.assert_close(made.network(images()), network(images()), rtol=1e-4, atol=1e-4)
    after = cost(folded_copy(made.network), SHAPE)
    assert (made.planned.macs, made.planned.params) == (after.macs, after.params)
    # A selection that passes all on is gone; the paths are those of the network's class.
    assert type(made.network.block1.bn1) is torch.nn.BatchNorm2d
    assert "block0.bn1" in made.changed and not [path for path in made.changed if "select" in path or ".norm" in path]


def test_a_plan_with_selections_gives_the_same_network():
    network = slimmed()
    first = pruned(network, criterion="bn-scale", ratio=0.4)
    second = pruned(network, PruningPlan(first.keep, first.widths))
    assert torch.equal(first.network(images()), second.network(images())) and first.changed == second.changed


def test_the_second_time_the_selected_channels_are_cut():
    once = pruned(slimmed(), criterion="bn-scale", ratio=0.3).network
    twice = pruned(once, criterion="bn-scale", ratio=0.3)
    assert "block0.bn1.select" in twice.keep and not [name for name in twice.keep if "select.select" in name]
    assert twice.network.block0.bn1.select.in_channels == 16
    assert twice.network(images()).shape == (3, 5)
    after = cost(folded_copy(twice.network), SHAPE)
    assert (twice.planned.macs, twice.planned.params) == (after.macs, after.params)


def test_other_criteria_do_not_select_also_where_selections_are():
    once = pruned(slimmed(), criterion="bn-scale", ratio=0.3).network
    assert {name for name in pruned(once, ratio=0.3).keep if "select" in name} == set()
    source = unfolded(slimmed(), "net", SHAPE)
    for options in ({"ratio": 0.5}, {"criterion": "bn-scale", "ratio": 0.5, "coupled": True}):
        assert with_selections(source, prune_options(**options), None) == (source, [])


@pytest.mark.parametrize(("name", "shape"), [("densenet-fashion", (1, 8, 8)), ("mobilenet-fashion", (1, 8, 8))])
def test_networks_of_the_zoo_are_pruned_to_the_cost_that_was_asked_for(name, shape):
    made = pruned(zoo.build(name, 10, shape).eval(), shape=shape, criterion="bn-scale", speedup=1.3)
    after = cost(folded_copy(made.network), shape)
    assert made.before.macs / after.macs >= 1.3 and after.macs == made.planned.macs
    assert made.network(torch.randn(2, *shape)).isfinite().all()


def test_channels_whose_scale_is_undone_are_left_alone_with_the_reason():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Conv2d(6, 6, 1),
        torch.nn.BatchNorm2d(6), torch.nn.Conv2d(6, 2, 1),
    ).eval()  # fmt: skip
    made = pruned(network, criterion="bn-scale", ratio=0.5)
    assert list(made.keep) == ["0"]
    assert made.left_alone["3"].startswith("its normalisation 4 is read by 5 without an activation")


def test_a_normalisation_that_got_a_selection_is_skipped_by_its_own_name():
    every, left = (pruned(slimmed(), criterion="bn-scale", ratio=0.4, skip=skip) for skip in ((), ("block0.bn1",)))
    assert "block0.bn1.select" in every.keep and "block0.bn1.select" not in left.keep
    assert left.left_alone["block0.bn1.select"] in ("block0.bn1.select is skipped", "block0.bn1.norm is skipped")
    assert isinstance(left.network.block0.bn1, torch.nn.BatchNorm2d)
    pattern = pruned(slimmed(), criterion="bn-scale", ratio=0.4, skip=("*.bn1",))
    assert not any(name.endswith("bn1.select") for name in pattern.keep)
