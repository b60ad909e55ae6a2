"""Dynamic programming along chains, against every combination of sizes."""

import numpy as np
import pytest
from layer_chains import SMALL, every_plan, small_choices

from decomp.allocation.dynamic_programming import solve, solve_for_target
from decomp.allocation.rules import Rules

RULES = {
    "free": Rules(),
    "cap": Rules(max_layer_speedup=2.0),
    "skip": Rules(skip=frozenset("b")),
    "both": Rules(skip=frozenset("a"), max_layer_speedup=1.7),
}


def is_allowed(choices, plans):
    return not any(choices.too_cheap(plans, layer) for layer in choices.graph.layers)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", SMALL)
def test_the_solution_for_a_multiplier_is_the_best_of_all_combinations(name, rules):
    for seed in range(3):
        choices = small_choices(name, seed, RULES[rules])
        everything = every_plan(choices)
        assert len(everything) > 1
        for multiplier in (0.01, 0.3, 2.0, 30.0):
            plans = solve(choices, multiplier)
            value = choices.error(plans) + multiplier * choices.total_cost(plans) / choices.cost.total
            best = min(error + multiplier * cost / choices.cost.total for _, cost, error in everything)
            assert value == pytest.approx(best, abs=1e-12) and is_allowed(choices, plans)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", SMALL)
def test_an_infinite_multiplier_gives_the_cheapest_of_all_combinations(name, rules):
    choices = small_choices(name, 0, RULES[rules])
    plans = solve(choices, np.inf)
    assert choices.total_cost(plans) == min(cost for _, cost, _ in every_plan(choices)) and is_allowed(choices, plans)


@pytest.mark.parametrize("name", SMALL)
def test_rules_that_bind_change_what_is_best(name):
    """The comparisons above would hold for rules that nobody keeps, if none of these solutions broke them."""
    cheapest = {rules: solve(small_choices(name, 0, RULES[rules]), np.inf) for rules in RULES}
    costs = {rules: small_choices(name, 0).total_cost(plans) for rules, plans in cheapest.items()}
    assert costs["free"] < min(costs["cap"], costs["skip"], costs["both"])
    for rules, skipped in (("skip", "b"), ("both", "a")):
        assert not cheapest[rules][skipped].treated


@pytest.mark.parametrize("rules", ["free", "both"])
@pytest.mark.parametrize("name", SMALL)
def test_nothing_that_costs_no_more_has_less_error_than_the_solution_for_a_target(name, rules):
    for seed in range(3):
        choices = small_choices(name, seed, RULES[rules])
        everything = every_plan(choices)
        cheapest = min(cost for _, cost, _ in everything)
        for share in (0.2, 0.5, 0.8):
            target = cheapest + share * (choices.cost.total - cheapest)
            plans = solve_for_target(choices, target)
            cost = choices.total_cost(plans)
            assert cost <= target and is_allowed(choices, plans)
            best = min(error for _, other, error in everything if other <= cost)
            assert choices.error(plans) == pytest.approx(best, abs=1e-12)


def test_the_solution_for_a_target_is_the_dearest_one_that_a_multiplier_reaches():
    choices = small_choices("three", 1)
    smallest = solve(choices, np.inf)
    target = 0.6 * choices.cost.total
    got = choices.total_cost(solve_for_target(choices, target))
    reached = {choices.total_cost(solve(choices, multiplier)) for multiplier in np.geomspace(1e-4, 1e4, 400)}
    assert choices.total_cost(smallest) < got == max(cost for cost in reached if cost <= target)
