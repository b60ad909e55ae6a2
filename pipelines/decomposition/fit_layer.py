"""Fit of a single layer of a network that is being compressed, and the exchange of its module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from decomp.graph.layer import Layer
from decomp.problem.factors import LayerSolution
from decomp.solvers.solve_layer import FitSettings, LayerSizes, solve_layer
from decomp.surgery.apply_solution import apply_solution

from .depthwise import refit_depthwise
from .gather import ProblemGatherer


def fit_layer(
    gatherer: ProblemGatherer, layer: Layer, sizes: LayerSizes, settings: FitSettings, *, reported: bool = True
) -> tuple[LayerSolution, dict[str, Any]]:
    """Solution and report of a layer on what it reads in the gatherer's network in its present state.

    Parameters
    ----------
    gatherer : ProblemGatherer
    layer : decomp.graph.layer.Layer
        With recorded responses; at or behind the layers gathered before, in execution order.
    sizes : LayerSizes
    settings : FitSettings
        A depthwise convolution, which keeps its form, needs neither of the two.
    reported : bool
        Whether anybody reads the report: without it, errors on held-out images and of halves of the rows are left out.

    Returns
    -------
    solution : decomp.problem.factors.LayerSolution
    report : dict
        See :func:`decomp.solvers.solve_layer.solve_layer`.
    """
    if layer.depthwise:
        return refit_depthwise(gatherer, layer)
    problem, held_out = gatherer.problem(layer)
    if not reported:
        return solve_layer(problem, sizes, settings)
    return solve_layer(problem, sizes, settings, held_out=held_out, halves=gatherer.halves)


def exchange_layer(gatherer: ProblemGatherer, solution: LayerSolution) -> tuple[list[str], dict[fx.Node, Tensor]]:
    """Put the solution of a layer into the gatherer's network, and narrow the values that are stored of it.

    Parameters
    ----------
    gatherer : ProblemGatherer
    solution : decomp.problem.factors.LayerSolution
        Of the layer that was gathered last.

    Returns
    -------
    exchanged : list of str
        Paths of the modules that were exchanged.
    columns : dict of torch.fx.Node to torch.LongTensor
        For each node whose value lost channels by it, those that stay.
    """
    graph, selection = gatherer.graph, solution.selection
    exchanged = apply_solution(graph.module, graph, solution)
    layer = graph.layer(solution.name)
    if selection is None or layer.input_space is None or layer.input_space.sampled:
        return exchanged, {}
    columns = graph.columns_kept(layer, selection.channels)
    gatherer.replay.narrow(columns)
    return exchanged, columns
