"""Chain formula against networks that are built and counted."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import shared_layers
from networks import CHAIN_INPUT, UPWARD_INPUT, block, chain, randomise, upward
from small_graphs import INPUT, DepthwiseSeparable
from torch import nn

from decomp.allocation.choices import plan_cost
from decomp.allocation.plan import STEPS, LayerPlan, limits
from decomp.cost import chain as formula
from decomp.cost.count import cost
from decomp.cost.models import MacsCost, ParamsCost
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn
from decomp.surgery.random_network import random_network


def strided():
    """Height and width change differently: the map between two halves is neither the input's nor the output's."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 8, (3, 5), stride=(2, 3), padding=(0, 1)), nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, dilation=(1, 2)), nn.ReLU(), nn.Conv2d(12, 6, 1),
        )
    )  # fmt: skip


NETWORKS = {
    "strided": (strided, (3, 25, 35)),
    "chain": (chain, CHAIN_INPUT),  # oblong kernels, stride in one direction, dilation, 'same'
    "block": (block, (3, 8, 8)),
    "depthwise": (lambda: randomise(DepthwiseSeparable()), INPUT),
    "transposed": (upward, UPWARD_INPUT),
    **{name: (partial(shared_layers.make, name), shared_layers.INPUT) for name in shared_layers.SHARED},
}


def graph_of(name):
    make, shape = NETWORKS[name]
    network = trace(make())
    fold_bn(network)
    return NetworkGraph(network, shape)


def sizes_with(graph, steps, share):
    """Every layer with these steps, at a share of the largest sizes."""
    plans = {}
    for layer in graph.layers:
        plan = plans[layer.name] = LayerPlan(layer.name)
        for step, (field, largest, _) in limits(layer).items():
            if step in steps and step not in layer.left_alone:
                setattr(plan, field, max(1, round(largest * share)))
    return plans


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("used", list(product([False, True], repeat=len(STEPS))), ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_both_costs_by_formula_are_those_of_a_network_for_every_combination_of_steps(name, used, share):
    graph, steps = graph_of(name), [step for step, is_used in zip(STEPS, used) if is_used]
    plans = sizes_with(graph, steps, share)
    if steps:
        assert any(plan.treated for plan in plans.values())
    counted = cost(random_network(graph, plans), graph.input_shape)
    per_layer = cost(graph.module, graph.input_shape).per_layer
    assert plan_cost(graph, plans, MacsCost(graph, per_layer)) == counted.macs
    assert plan_cost(graph, plans, ParamsCost(graph)) == pytest.approx(counted.params, abs=1e-6)


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        ((None, None), ["dense"]),
        ((3, None), ["vertical", "horizontal"]),
        ((None, 4), ["filters", "pointwise"]),
        ((3, 4), ["vertical", "horizontal", "pointwise"]),
    ],
)
@pytest.mark.parametrize("network", ["strided", "transposed"])
def test_links_fit_together_from_the_input_of_the_layer_to_its_output(network, ranks, names):
    graph = graph_of(network)
    for layer in graph.layers:
        geometry = formula.geometry_of(graph.module.get_submodule(layer.name))
        links = formula.chain(layer, 5, 7, *ranks, geometry=geometry)
        assert [link.name for link in links] == names
        assert links[0].in_channels == 5 and links[-1].out_channels == 7
        assert links[0].in_hw == layer.in_hw and links[-1].out_hw == layer.out_hw
        for link, following in zip(links, links[1:]):
            assert link.out_channels == following.in_channels and link.out_hw == following.in_hw
        for link in links:
            assert link.geometry.out_size(link.in_hw, link.kernel) == link.out_hw
        if network == "strided" and "vertical" in names and layer.kernel != (1, 1):
            assert links[0].out_hw not in (layer.in_hw, layer.out_hw)


def test_arrays_of_sizes_give_the_cost_of_each():
    layer = graph_of("chain").layers[1]
    a, b = np.array([[1], [5], [8]]), np.array([[2, 10]])
    for ranks in ((None, None), (3, None), (None, 4), (3, 4)):
        links = formula.chain(layer, a, b, *ranks)
        for total in (formula.chain_macs, formula.chain_params):
            table = np.broadcast_to(total(links), (3, 2))
            single = [[total(formula.chain(layer, int(x), int(y), *ranks)) for y in b[0]] for x in a[:, 0]]
            assert table.tolist() == single


def test_arrays_of_ranks_give_the_cost_of_each():
    layer, ranks = graph_of("chain").layers[1], np.array([1, 3, 9])
    got = formula.chain_macs(formula.chain(layer, 5, 6, ranks, 4))
    assert got.tolist() == [formula.chain_macs(formula.chain(layer, 5, 6, int(rank), 4)) for rank in ranks]
