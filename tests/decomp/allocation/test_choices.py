"""Choices of the search: sizes, losses, costs and the layers that share a width."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_chains import SMALL, chain_of_layers, macs_of, random_curves, small_choices

from decomp.allocation.choices import Choices, plan_cost
from decomp.allocation.plan import LayerPlan
from decomp.allocation.rules import Rules


def full(choices):
    return {la.name: LayerPlan(la.name) for la in choices.graph.layers}


def test_layers_that_share_widths_form_one_chain_and_a_layer_that_cannot_be_narrowed_begins_another():
    choices = small_choices("four", 0)
    assert [[la.name for la in chain] for chain in choices.chains()] == [["a", "b", "c", "d"]]
    graph, steps = SMALL["four"]
    curves = random_curves(graph, 0, steps)
    curves["c"].prune = None
    choices = Choices(graph, curves, macs_of(graph), Rules())
    assert [[la.name for la in chain] for chain in choices.chains()] == [["a", "b"], ["c", "d"]]


def test_a_layer_writes_as_many_channels_as_its_reader_keeps():
    choices = small_choices("three", 0)
    plans = full(choices)
    plans["b"].keep = 3
    assert [choices.width_out(plans, layer) for layer in choices.graph.layers] == [3, 5, 3]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(SMALL)))
def test_a_change_of_one_size_changes_the_whole_by_the_local_cost(data, name):
    choices = small_choices(name, 0)
    plans = full(choices)
    for layer in choices.graph.layers:
        if (layer.name, "keep") in choices.sizes:
            plans[layer.name].keep = layer.input_width
    layer, field = data.draw(st.sampled_from(sorted(choices.sizes)))
    sizes = choices.sizes[layer, field].tolist()
    setattr(plans[layer], field, data.draw(st.sampled_from(sizes)))
    total, local = choices.total_cost(plans), choices.local_cost(plans, layer)
    setattr(plans[layer], field, data.draw(st.sampled_from(sizes)))
    assert choices.total_cost(plans) - total == choices.local_cost(plans, layer) - local


@pytest.mark.parametrize("name", SMALL)
def test_the_table_of_a_layer_holds_loss_and_cost_of_every_choice(name):
    choices = small_choices(name, 1, Rules(max_layer_speedup=2.5))
    for layer in choices.graph.layers:
        error, cost = choices.table(layer)
        reader = choices.readers.get(layer.name)
        outs = [None] if reader is None else choices.widths(reader)
        for row, keep in enumerate(choices.widths(layer)):
            for column, width in enumerate(outs):
                for place, ranks in enumerate(choices.ranks(layer.name)):
                    plans = full(choices)
                    plans[layer.name] = LayerPlan.of(layer.name, keep, ranks)
                    if reader is not None:
                        plans[reader.name].keep = width
                    assert cost[row, column, place] == choices.layer_cost(plans, layer) / choices.cost.total
                    if choices.too_cheap(plans, layer):
                        assert error[row, column, place] == np.inf
                    else:
                        own = choices.curves[layer.name].error(plans[layer.name])
                        assert error[row, column, place] == pytest.approx(own)
    assert any(np.isinf(choices.table(layer)[0]).any() for layer in choices.graph.layers)


def test_full_ranks_are_not_offered_since_the_step_left_out_is_cheaper():
    choices = small_choices("two", 0)
    ranks = choices.ranks("b")
    assert ranks[0] == (None, None) and (14, None) not in ranks and (8, 2) in ranks
    assert {spatial for spatial, _ in ranks} == {None, *range(1, 9)} and {d for _, d in ranks} == {None, 1, 2}


def test_a_skipped_layer_offers_nothing_and_the_next_keeps_reading_all_of_it():
    choices = small_choices("four", 0, Rules(skip=frozenset("b")))
    assert choices.sizes.keys() == {("a", "channel_rank"), ("c", "channel_rank"), ("d", "keep")}
    assert "a" not in choices.readers and "b" not in choices.readers


def test_sizes_follow_the_multiple_of_the_channels_that_decide_it():
    graph = chain_of_layers((3, 64, 16, 4), [(3, 3)] * 3)
    choices = Choices(graph, random_curves(graph, 0), macs_of(graph), Rules(8))
    # A spatial rank of b up to 48 goes by the fewer of its 64 inputs and 16 outputs, its channel rank by the outputs.
    assert choices.sizes["b", "keep"].tolist() == [8, 16, 24, 32, 40, 48, 56, 64]
    assert choices.sizes["b", "spatial_rank"].tolist() == list(range(2, 49, 2))
    assert choices.sizes["b", "channel_rank"].tolist() == list(range(2, 17, 2))
    assert choices.next_size("b", "keep", 8) == 16 and choices.next_size("b", "keep", 9) == 16
    assert choices.next_size("b", "keep", 64) is None
    assert choices.at_most("b", "keep", 15.9) == 8 and choices.at_most("b", "keep", 3) == 8
    assert choices.off_multiple(LayerPlan("b", 9, 4, 3)) == ["keep", "channel_rank"]
    free = choices.with_any_size()
    assert free.off_multiple(LayerPlan("b", 9, 4, 3)) == [] and free.rules.multiple == 1


def test_plans_cost_the_same_with_and_without_the_search():
    choices = small_choices("three", 0)
    plans = {"a": LayerPlan("a", None, 2), "b": LayerPlan("b", 3, None, 2), "c": LayerPlan("c", 4)}
    assert plan_cost(choices.graph, plans, choices.cost) == choices.total_cost(plans)
