"""Sizes for a target, or the greatest speed-up and its causes."""

from dataclasses import replace

import pytest
from layer_chains import chain_of_layers, macs_of, random_curves, small_choices

from decomp.allocation.rules import Rules
from decomp.allocation.target import OutOfReach, allocate, limiting_factors, most
from decomp.errors import UsageError


def parts(name="three", seed=0):
    choices = small_choices(name, seed)
    return choices.graph, choices.curves, choices.cost


@pytest.mark.parametrize("allocation", ["joint", "energy", "uniform"])
def test_the_target_is_met(allocation):
    graph, curves, cost = parts()
    found = allocate(graph, curves, cost, Rules(), speedup=1.5, allocation=allocation)
    assert 0.8 * cost.total / 1.5 <= found.cost <= cost.total / 1.5
    assert found.cost == found.allocator.cost(found.plans)


def test_an_unknown_allocation_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="^allocation: must be one of joint, .* got 'jiont'; did you mean joint"):
        allocate(*parts(), Rules(), speedup=1.5, allocation="jiont")


def test_out_of_reach_carries_the_maximum_and_the_speedup_without_each_rule():
    graph, curves, cost = parts()
    rules = Rules(skip=frozenset("b"), max_layer_speedup=2.0)
    with pytest.raises(OutOfReach, match=r"^speedup: at most \d\.\d\dx can be reached .* got 50x") as caught:
        allocate(graph, curves, cost, rules, speedup=50, allocation="joint", steps=("spatial", "channel"))
    factors = caught.value.factors
    assert caught.value.speedup == 50 and caught.value.unit == "multiply-accumulates"
    assert factors.most == most(graph, curves, cost, rules) and factors.steps and not factors.together
    assert factors.rules == {
        "skip": most(graph, curves, cost, replace(rules, skip=frozenset())),
        "max_layer_speedup": most(graph, curves, cost, Rules(skip=rules.skip)),
    }
    assert min(factors.rules.values()) > factors.most
    met = allocate(graph, curves, cost, rules, speedup=factors.most, allocation="joint")
    assert cost.total / met.cost >= factors.most * (1 - 1e-12)


def test_rules_of_which_none_alone_binds_are_named_together():
    graph, curves, cost = parts()
    rules = Rules(skip=frozenset("abc"), max_layer_speedup=1.0)
    factors = limiting_factors(graph, curves, cost, rules)
    assert factors.together and list(factors.rules) == ["skip", "max_layer_speedup"] and factors.most == 1
    assert limiting_factors(graph, curves, cost, Rules()).rules == {}


def test_layers_without_steps_and_cost_outside_the_layers_are_causes():
    graph, curves, cost = parts()
    left = dict.fromkeys(("spatial", "channel", "prune"), "grouped")
    graph = replace(graph, layers=[replace(graph.layers[0], left_alone=left), *graph.layers[1:]])
    factors = limiting_factors(graph, curves, cost, Rules())
    assert factors.untouched == (("a", "grouped"),) and not factors.steps and not factors.per_call
    assert factors.rest == 40 / cost.total
    first = graph.layers[0]
    assert factors.untouched_share == cost.layer(first, first.in_channels, first.out_channels) / cost.total > 0


def test_the_most_expensive_layer_without_steps_is_named_first():
    graph = chain_of_layers((3, 4, 64, 64), [(3, 3)] * 3)
    curves, cost = random_curves(graph, 0, ("channel", "prune")), macs_of(graph)
    left = dict.fromkeys(("spatial", "channel", "prune"), "grouped")
    a, b, c = graph.layers
    graph = replace(graph, layers=[replace(a, left_alone=left), b, replace(c, left_alone=left)])
    assert [name for name, _ in limiting_factors(graph, curves, cost, Rules()).untouched] == [c.name, a.name]


def test_the_multiple_gives_way_where_the_target_is_out_of_reach_with_it():
    graph = chain_of_layers((3, 64, 64, 4), [(1, 1)] * 3)
    curves, cost = random_curves(graph, 0, ("channel", "prune")), macs_of(graph)
    reachable = most(graph, curves, cost, Rules(8))
    found = allocate(graph, curves, cost, Rules(8), speedup=0.9 * reachable, allocation="joint")
    assert found.allocator.rules.multiple < 8 and found.cost <= cost.total / (0.9 * reachable)
    assert allocate(graph, curves, cost, Rules(8), speedup=1.5, allocation="joint").allocator.rules.multiple == 8


def test_the_output_layer_reads_all_channels_where_the_joint_target_allows_it():
    graph, curves, cost = parts("four")
    last = replace(graph.layers[-1], kind="linear", activation="identity")
    graph = replace(graph, layers=[*graph.layers[:-1], last])
    curves["d"].prune[:] = 0.0  # free to prune, if it were allowed
    easy = allocate(graph, curves, cost, Rules(), speedup=1.1, allocation="joint")
    assert easy.plans["d"].keep is None
    hard = allocate(graph, curves, cost, Rules(), speedup=most(graph, curves, cost, Rules()), allocation="joint")
    assert hard.plans["d"].keep == 1
