"""Plans between a slow and a fast one: single steps, allowed sizes, the least loss for the time first."""

import numpy as np
import pytest
from torch import nn

from decomp.allocation.choices import Choices
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import SIZES, LayerPlan
from decomp.allocation.rules import Rules
from decomp.cost.count import cost as count_cost
from decomp.cost.models import counted_model
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition.plans_between import plans_between


@pytest.fixture(scope="module")
def graph():
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 4),
    )  # fmt: skip
    return NetworkGraph(trace(network, "net"), (1, 4, 4), "net")


ANY_SIZE = Rules(multiple=1)


def choices_of(graph, rules=ANY_SIZE, losses=(1.0, 1.0, 1.0, 1.0)):
    def curve(step, layer, loss):
        size = {"prune": layer.input_width, "spatial": layer.max_spatial_rank, "channel": layer.out_channels}[step]
        return loss * np.linspace(1, 0, size + 1)

    curves = {
        layer.name: LayerCurves(**{step: curve(step, layer, loss) for step in SIZES if step not in layer.left_alone})
        for layer, loss in zip(graph.layers, losses)
    }
    whole = count_cost(graph.module, graph.input_shape)
    return Choices(graph, curves, counted_model("macs", graph, whole.per_layer, whole), rules)


def plans_of(graph, **sizes):
    return {layer.name: sizes.get(f"l{layer.name}", LayerPlan(layer.name)) for layer in graph.layers}


def sizes(plans):
    return {name: (plan.keep, plan.ranks) for name, plan in plans.items()}


def test_a_path_changes_one_layer_at_a_time_and_leaves_both_ends_out(graph):
    slow, fast = plans_of(graph), plans_of(graph, l2=LayerPlan("2", 4), l4=LayerPlan("4", 8, channel_rank=4))
    path = plans_between(choices_of(graph), slow, fast)
    steps = [sizes(slow), *map(sizes, path), sizes(fast)]
    changed = [[name for name in one if one[name] != other[name]] for one, other in zip(steps, steps[1:])]
    assert len(path) > 6 and all(len(names) == 1 for names in changed)
    assert sizes(slow) not in steps[1:] and sizes(fast) not in steps[:-1]


def test_no_spatial_rank_is_above_the_one_that_is_exact_for_the_channels_read(graph):
    slow, fast = plans_of(graph, l2=LayerPlan("2", 16, 40)), plans_of(graph, l2=LayerPlan("2", 4, 6))
    read = [plan["2"] for plan in plans_between(choices_of(graph), slow, fast)]
    assert min(plan.keep or 16 for plan in read) == 4
    assert all(plan.spatial_rank <= 3 * (plan.keep or 16) for plan in read)
    assert any(plan.spatial_rank == 3 * (plan.keep or 16) < 40 for plan in read)


def test_counted_cost_falls_along_a_path_on_which_every_layer_becomes_smaller(graph):
    choices = choices_of(graph)
    slow, fast = plans_of(graph, l2=LayerPlan("2", 12)), plans_of(graph, l2=LayerPlan("2", 2), l4=LayerPlan("4", 3))
    costs = [choices.total_cost(plans) for plans in (slow, *plans_between(choices, slow, fast), fast)]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs)


def test_the_layer_that_loses_least_for_the_time_changes_first(graph):
    slow, fast = plans_of(graph), plans_of(graph, l2=LayerPlan("2", 8), l4=LayerPlan("4", 16))
    for losses, first in (((0, 0.01, 100.0, 0), "2"), ((0, 100.0, 0.01, 0), "4")):
        after = sizes(plans_between(choices_of(graph, losses=losses), slow, fast)[0])
        assert [name for name, own in after.items() if own != (None, (None, None))] == [first]


def test_sizes_are_multiples_where_one_lies_between_and_single_channels_otherwise(graph):
    choices = choices_of(graph, Rules(multiple=4))  # layer 4 reads 32 channels, a multiple of 4
    far = plans_between(choices, plans_of(graph, l4=LayerPlan("4", 28)), plans_of(graph, l4=LayerPlan("4", 12)))
    assert [plans["4"].keep for plans in far] == [24, 20, 16] and not any(plans["4"].off_multiple for plans in far)
    near = plans_between(choices, plans_of(graph, l4=LayerPlan("4", 16)), plans_of(graph, l4=LayerPlan("4", 12)))
    assert [plans["4"].keep for plans in near] == [15, 14, 13] and near[0]["4"].off_multiple == ["keep"]
    assert plans_between(choices, near[0], near[1]) == []


def test_no_plan_on_the_path_has_a_layer_below_its_floor(graph):
    slow, fast = plans_of(graph), plans_of(graph, l2=LayerPlan("2", 4), l4=LayerPlan("4", 8))
    choices = choices_of(graph, Rules(max_layer_speedup=3.0))
    path = plans_between(choices, slow, fast)
    assert path and not any(choices.too_cheap(plans, layer) for plans in path for layer in graph.layers)
    assert len(path) < len(plans_between(choices_of(graph), slow, fast))
