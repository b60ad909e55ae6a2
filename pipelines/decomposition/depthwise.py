"""Depthwise convolutions in the layer loop: each channel is fitted to the original on what it reads now."""

from __future__ import annotations

from typing import Any

from torch import nn

from decomp.graph.layer import Layer
from decomp.modules.convolution import geometry
from decomp.problem.factors import LayerSolution
from decomp.solvers.depthwise import solve_depthwise

from .gather import ProblemGatherer


def refit_depthwise(gatherer: ProblemGatherer, layer: Layer) -> tuple[LayerSolution, dict[str, Any]]:
    """Solution and report of a depthwise convolution of the gatherer's network in its present state.

    Parameters
    ----------
    gatherer : ProblemGatherer
    layer : decomp.graph.layer.Layer
        At or behind the layers gathered before, in execution order.

    Returns
    -------
    solution : decomp.problem.factors.LayerSolution
    report : dict
        See :func:`decomp.solvers.depthwise.solve_depthwise`.
    """
    module = gatherer.graph.module.get_submodule(layer.name)
    assert isinstance(module, nn.Conv2d)
    bias = None if module.bias is None else module.bias.detach()
    moments, held_out = gatherer.channel_moments(layer)
    return solve_depthwise(layer.name, module.weight.detach(), bias, geometry(module), moments, held_out)
