"""Apply a layer's solution to a network: exchange modules without changing the graph of calls.

Because only modules are exchanged, the same list of edits applies to the traced network and to the original class,
and an edit is data: the path of a module and its replacement.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import nn

from decomp.errors import DecompError
from decomp.graph.network_graph import NetworkGraph
from decomp.modules.convolution import conv_from_weights
from decomp.modules.replace import linear, set_module, with_parameters
from decomp.modules.select import Select
from decomp.problem.factors import LayerSolution
from decomp.surgery.narrow_network import shrink


def module_from_factors(solution: LayerSolution, kind: str, sampled: bool = False) -> nn.Module:
    """The module of a chain of factors: one layer, or a Sequential with named factors.

    Parameters
    ----------
    solution : LayerSolution
    kind : {'conv', 'linear'}
    sampled : bool
        Put a selection of the channels that the solution keeps in front.

    Returns
    -------
    torch.nn.Module
    """
    factored = solution.factored
    if kind == "linear":
        (factor,) = factored.factors
        return linear(factor.weight.flatten(1), factor.bias)
    convs: OrderedDict[str, nn.Module] = OrderedDict(
        (name, conv_from_weights(f.weight, f.bias, f.geometry)) for name, f in zip(factored.names, factored.factors)
    )
    if sampled and solution.selection is not None:
        select = Select.of(solution.selection.channels, solution.selection.n_total)
        return nn.Sequential(OrderedDict(select=select, **convs))
    return next(iter(convs.values())) if len(convs) == 1 else nn.Sequential(convs)


def apply_solution(network: nn.Module, graph: NetworkGraph, solution: LayerSolution) -> list[str]:
    """Put a layer's solution into a network: narrow its producer and the modules between, replace the layer.

    Where others need the channels too, the layer gets a selection in front of it instead.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place; has the module paths of ``graph``.
    graph : decomp.graph.network_graph.NetworkGraph
    solution : LayerSolution

    Returns
    -------
    list of str
        Paths of the modules that were exchanged.

    Raises
    ------
    DecompError
        The solution selects channels of an input that cannot be narrowed.
    """
    layer = graph.layer(solution.name)
    changed: list[str] = []
    if solution.selection is not None:
        if layer.input_space is None:
            raise DecompError(layer.name, "its input cannot be narrowed", got=layer.left_alone.get("prune"))
        if not layer.input_space.sampled:
            kept = {graph.own_space(layer).name: solution.selection.channels.tolist()}
            changed = [path for path in shrink(network, graph.spaces, kept) if path != layer.name]
    sampled = layer.input_space is not None and layer.input_space.sampled
    old = network.get_submodule(layer.name)
    replacement = _refitted(old, solution) if layer.depthwise else module_from_factors(solution, layer.kind, sampled)
    replacement.to(device=next(old.parameters()).device).train(old.training)
    set_module(network, layer.name, replacement)
    return [*changed, layer.name]


def _refitted(old: nn.Module, solution: LayerSolution) -> nn.Module:
    """A depthwise convolution with the weights of a solution."""
    (factor,) = solution.factored.factors
    if not isinstance(old, nn.Conv2d) or old.weight.shape != factor.weight.shape:
        got = f"a kernel {tuple(factor.weight.shape)}"
        raise DecompError(solution.name, f"must be a depthwise convolution like {old}", got=got)
    return with_parameters(copy.deepcopy(old).to("meta"), factor.weight, factor.bias)
