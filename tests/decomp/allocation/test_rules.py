"""Rules for sizes: values that do not change, and whose defaults allow everything."""

import dataclasses
import math

import pytest
from error_curves import curves_for
from networks import CHAIN_INPUT, chain

from decomp.allocation.choices import Choices
from decomp.allocation.plan import LayerPlan, limits
from decomp.allocation.rules import Rules
from decomp.cost.models import ParamsCost
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace


@pytest.fixture(scope="module")
def graph():
    return NetworkGraph(trace(chain()), CHAIN_INPUT)


def test_rules_are_values_that_cannot_change():
    rules = Rules()
    assert rules == Rules(1, frozenset(), math.inf) != Rules(2)
    assert len({rules, Rules(), Rules(skip=frozenset("a"))}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules.multiple = 8


def test_the_defaults_allow_every_size_of_every_layer_however_cheap(graph):
    curves = curves_for(graph)
    choices = Choices(graph, curves, ParamsCost(graph), Rules())
    allowed = {}
    for layer in graph.layers:
        for step, (size, limit, _) in limits(layer).items():
            if step not in layer.left_alone:
                allowed[layer.name, size] = list(range(1, limit + 1))
    assert {name: sizes.tolist() for name, sizes in choices.sizes.items()} == allowed
    least = {
        layer.name: LayerPlan(layer.name, **{size: 1 for name, size in allowed if name == layer.name})
        for layer in graph.layers
    }
    assert not any(choices.too_cheap(least, layer) for layer in graph.layers)
    strict = Choices(graph, curves, ParamsCost(graph), Rules(max_layer_speedup=1.5))
    assert any(strict.too_cheap(least, layer) for layer in graph.layers)
