"""A network of planned sizes with random weights: what it will cost is known before any layer is solved."""

import copy

import torch

from decomp.modules.convolution import geometry
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry, LayerSolution, Selection
from decomp.surgery.apply_solution import apply_solution


def mockup(graph, items):
    """A copy of a network with every layer as planned, and random weights.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
        Of a network that was not changed yet.
    items : dict of str to decomp.allocation.plan.LayerPlan

    Returns
    -------
    torch.nn.Module
        In evaluation mode, where the original is.
    """
    network = copy.deepcopy(graph.module).eval()
    for layer in graph.layers:
        if layer.fitted:
            item = items[layer.name]
            width = layer.input_width
            selection = None if item.keep is None else Selection(torch.arange(item.keep), width)
            apply_solution(network, graph, LayerSolution(layer.name, selection, random_factors(graph, layer, item)))
    return network


def random_factors(graph, layer, item):
    """A chain of the planned sizes, before its outputs are narrowed."""
    kernel, g = layer.kernel, Geometry()
    if layer.kind == "conv":
        g = geometry(graph.module.get_submodule(layer.name))
    elif layer.input_space is not None:
        kernel = layer.input_space.map_shape
    c = item.keep or layer.input_width
    filters = item.channel_rank or layer.out_channels
    if item.spatial_rank is not None:
        names = ["vertical", "horizontal"]
        factors = [
            _random((item.spatial_rank, c, kernel[0], 1), g.vertical()),
            _random((filters, item.spatial_rank, 1, kernel[1]), g.horizontal()),
        ]
    else:
        names = ["dense" if item.channel_rank is None else "filters"]
        factors = [_random((filters, c, *kernel), g)]
    if item.channel_rank is not None:
        names.append("pointwise")
        factors.append(_random((layer.out_channels, filters, 1, 1), Geometry()))
    last = factors[-1]
    factors[-1] = ConvFactor(last.weight, torch.zeros(len(last.weight)), last.geometry)
    return FactoredConv(tuple(factors), tuple(names))


def _random(shape, own):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return ConvFactor(weight / weight[0].numel() ** 0.5, None, own)
