"""Moves that spend the budget left by the grid: never above it, never worse than the start."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_chains import SMALL, chain_of_layers, macs_of, random_curves, small_choices

from decomp.allocation.choices import Choices
from decomp.allocation.local_search import LOWEST_SHARE, fill, keep_to_floors, release
from decomp.allocation.plan import SIZES, LayerPlan
from decomp.allocation.rules import Rules

GRAPHS = st.sampled_from(list(SMALL))


def drawn_plans(choices, data):
    """Any allowed sizes; a step may be left out where it is a rank."""
    plans = {}
    for layer in choices.graph.layers:
        plan = plans[layer.name] = LayerPlan(layer.name)
        for name in SIZES.values():
            sizes = choices.sizes.get((layer.name, name))
            if sizes is not None and (name == "keep" or data.draw(st.booleans())):
                setattr(plan, name, int(data.draw(st.sampled_from(sizes.tolist()))))
    return plans


def sizes_of(plans):
    return {(plan.layer, name): getattr(plan, name) for plan in plans.values() for name in SIZES.values()}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=GRAPHS, seed=st.integers(0, 5), surplus=st.floats(1.0, 1.6))
def test_filling_stays_within_the_budget_and_never_adds_error(data, name, seed, surplus):
    choices = small_choices(name, seed)
    plans = drawn_plans(choices, data)
    target, before = choices.total_cost(plans) * surplus, choices.error(plans)
    cost = fill(choices, plans, target)
    assert cost == pytest.approx(choices.total_cost(plans)) and cost <= target
    assert choices.error(plans) <= before + 1e-9
    for (layer, field), size in sizes_of(plans).items():
        larger = None if size is None else choices.next_size(layer, field, size)
        if larger is not None:
            setattr(plans[layer], field, larger)
            assert choices.total_cost(plans) > target  # nothing is left that would fit
            setattr(plans[layer], field, size)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=GRAPHS, surplus=st.floats(1.0, 1.4), cap=st.floats(1.0, 2.0), seed=st.integers(0, 5))
def test_filling_makes_no_layer_too_cheap(data, name, surplus, cap, seed):
    choices = small_choices(name, seed, Rules(max_layer_speedup=cap))
    plans = drawn_plans(choices, data)
    keep_to_floors(choices, plans)
    fill(choices, plans, choices.total_cost(plans) * surplus)
    assert not any(choices.too_cheap(plans, layer) for layer in choices.graph.layers)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=GRAPHS, cap=st.floats(1.0, 4.0))
def test_layers_below_their_floor_are_raised_to_it_and_no_further_than_needed(data, name, cap):
    choices = small_choices(name, 0, Rules(max_layer_speedup=cap))
    plans = drawn_plans(choices, data)
    before, were_fine = sizes_of(plans), not any(choices.too_cheap(plans, la) for la in choices.graph.layers)
    keep_to_floors(choices, plans)
    assert not any(choices.too_cheap(plans, layer) for layer in choices.graph.layers)
    after = sizes_of(plans)
    assert after == before if were_fine else after != before
    for place, size in before.items():
        assert size is None or after[place] is None or after[place] >= size


def wide_choices(multiple):
    graph = chain_of_layers((3, 32, 32, 4), [(1, 1)] * 3)
    return Choices(graph, random_curves(graph, 3, ("channel", "prune")), macs_of(graph), Rules(multiple))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), surplus=st.floats(1.0, 1.5))
def test_releasing_uses_the_budget_with_few_sizes_off_their_multiple(data, surplus):
    choices = wide_choices(4)
    plans = drawn_plans(choices, data)
    target = min(choices.total_cost(plans) * surplus, 0.9 * choices.cost.total)
    before = choices.total_cost(plans)
    if before > target:
        return
    cost = release(choices, plans, target)
    assert cost == pytest.approx(choices.total_cost(plans)) and before <= cost <= target
    off = sum(len(choices.off_multiple(plan)) for plan in plans.values())
    if before >= LOWEST_SHARE * target:
        assert cost == before and off == 0
    else:
        free = choices.with_any_size()
        dearer = [
            free.next_size(layer, field, size) for (layer, field), size in sizes_of(plans).items() if size is not None
        ]
        assert cost >= LOWEST_SHARE * target or not any(dearer) or fill(free, plans, target) == pytest.approx(cost)


def test_a_trade_pays_for_a_wide_channel_with_the_ranks_of_another_layer():
    """The budget has room for no raise, and no exchange alone helps; both together use it."""
    for seed in range(40):
        choices = small_choices("two", seed)
        plans = {layer.name: LayerPlan.of(layer.name, None, (None, None)) for layer in choices.graph.layers}
        plans["b"].keep, plans["a"].spatial_rank = 2, 2
        target, before = choices.total_cost(plans) * 1.15, choices.error(plans)
        fill(choices, plans, target)
        assert choices.total_cost(plans) <= target and choices.error(plans) <= before
