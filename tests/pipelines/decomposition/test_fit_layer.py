"""Fit of a single layer, and its exchange in the network that is being compressed."""

import pytest
import torch

from decomp.allocation.plan import LayerPlan
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition.depthwise import refit_depthwise
from decomp.pipelines.decomposition.fit_layer import exchange_layer, fit_layer
from decomp.pipelines.decomposition.gather import ProblemGatherer
from decomp.pipelines.run.loading import open_frozen
from decomp.solvers.solve_layer import FitSettings
from tests.pipelines.digit_runs import SHAPE

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def gatherer_of(run):
    frozen, original = open_frozen(run)
    graph = NetworkGraph(trace(original), SHAPE)
    return frozen, original, ProblemGatherer(frozen, graph)


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_the_layer_behind_reads_the_narrowed_values_and_makes_up_for_what_went(run):
    frozen, original, gatherer = gatherer_of(run)
    graph, settings = gatherer.graph, FitSettings("first-k", refined=False)
    with frozen, torch.no_grad():
        first, second = graph.layers[:2]
        solution, _ = fit_layer(gatherer, first, LayerPlan(first.name), settings)
        assert exchange_layer(gatherer, solution) == ([first.name], {})
        solution, report = fit_layer(gatherer, second, LayerPlan(second.name, 3), settings)
        exchanged, columns = exchange_layer(gatherer, solution)
        assert exchanged == [first.name, second.name] and report["selection"]["selector"] == "first-k"
        assert {node.name: stay.tolist() for node, stay in columns.items()}[graph.node(first).name] == [0, 1, 2]
        assert graph.module.get_submodule(first.name).out_channels == 3
        # The stored values are narrowed like those of a pass through the whole network, or this fit would not run.
        third = graph.layers[2]
        problem, _ = gatherer.problem(third)
        narrowed = ProblemGatherer(frozen, NetworkGraph(graph.module, SHAPE)).problem(third)[0]
        torch.testing.assert_close(problem.moments.K, narrowed.moments.K)


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_a_report_that_nobody_reads_costs_no_errors_on_held_out_images_and_changes_no_weight(run):
    frozen, _, gatherer = gatherer_of(run)
    with frozen:
        layer, settings = gatherer.graph.layers[1], FitSettings("backward")
        read, report = fit_layer(gatherer, layer, LayerPlan(layer.name, 4, 6), settings)
        unread, short = fit_layer(gatherer, layer, LayerPlan(layer.name, 4, 6), settings, reported=False)
    pairs = zip(read.factored.factors, unread.factored.factors, strict=True)
    assert all(torch.equal(one.weight, other.weight) for one, other in pairs)
    assert "held_out" in report["errors"]["refine"] and "held_out" not in short["errors"]["refine"]


@pytest.mark.parametrize("run", ["inverted"], indirect=True)
def test_a_depthwise_convolution_is_refitted_channel_by_channel(run):
    frozen, _, gatherer = gatherer_of(run)
    with frozen:
        layer = next(layer for layer in gatherer.graph.layers if layer.depthwise)
        solution, report = fit_layer(gatherer, layer, LayerPlan(layer.name), FitSettings())
        wanted, same = refit_depthwise(gatherer, layer)
    assert report == same and torch.equal(solution.factored.factors[0].weight, wanted.factored.factors[0].weight)
