"""Counted cost models, and the interface that all cost models have."""

import inspect

import pytest
from networks import CHAIN_INPUT, chain

from decomp.allocation.interfaces import CostModel
from decomp.allocation.plan import COSTS
from decomp.cost.count import Cost, cost
from decomp.cost.latency_model import LatencyCost, factor_grids
from decomp.cost.models import MacsCost, ParamsCost, counted_model
from decomp.errors import UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn


def models_of_a_network():
    network = trace(chain())
    fold_bn(network)
    graph = NetworkGraph(network, CHAIN_INPUT)
    tables = {
        (layer.name, name): (grid.inputs, grid.outputs, [[float(a * b) for b in grid.outputs] for a in grid.inputs])
        for layer in graph.layers
        for name, grid in factor_grids(layer, network.get_submodule(layer.name)).items()
    }
    latency = LatencyCost(graph, tables, {layer.name: 1.0 for layer in graph.layers}, beside=2.0)
    return graph, [MacsCost(graph, cost(network, CHAIN_INPUT).per_layer), ParamsCost(graph), latency]


def test_every_cost_model_has_the_interface_and_its_layers_and_rest_sum_up_to_the_total():
    graph, models = models_of_a_network()
    assert tuple(model.name for model in models) == COSTS
    wanted = inspect.signature(CostModel.layer).parameters
    for model in models:
        assert isinstance(model.unit, str) and list(inspect.signature(type(model).layer).parameters) == list(wanted)
        layers = sum(model.layer(la, la.in_channels, la.out_channels) for la in graph.layers)
        # Fitted layers get a bias, also where the original has none.
        added = sum(graph.module.get_submodule(la.name).bias is None for la in graph.layers)
        assert added == 0 and layers + model.rest == pytest.approx(model.total)


def test_a_counted_cost_is_made_by_name_and_an_unknown_name_is_refused():
    graph, _ = models_of_a_network()
    per_layer, original = cost(graph.module, graph.input_shape).per_layer, Cost(70_000, 9_000, {})
    macs, params = (counted_model(name, graph, per_layer, original) for name in ("macs", "params"))
    assert (macs.name, macs.total, params.name, params.total) == ("macs", 70_000, "params", 9_000)
    with pytest.raises(UsageError, match="^cost: must be one of macs, params, got 'flops'"):
        counted_model("flops", graph, per_layer, original)
