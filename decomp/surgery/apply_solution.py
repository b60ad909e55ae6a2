"""Change a network without changing what calls what: every edit puts one module in the place of another.

Because only modules are exchanged, the same list of edits applies to the traced network and to the
original class, and an edit is data: the path of a module and what it becomes.
Functions on modules return new modules; functions on networks work in place on a network that the caller has
copied. How a module becomes narrower is known by :mod:`decomp.surgery.narrow_network`.
"""

from collections import OrderedDict

from torch import nn

from decomp.errors import DecompError
from decomp.modules.convolution import conv_from_weights
from decomp.modules.replace import linear, set_module
from decomp.modules.select import Select
from decomp.surgery.narrow_network import shrink

# -- batch normalisation -----------------------------------------------------------------------------------


# -- a layer's solution on the network ---------------------------------------------------------------------


def module_from_factors(solution, kind, sampled=False):
    """The module that a chain of factors stands for: one layer, or a Sequential with named factors.

    With ``sampled``, a selection of the channels that the solution keeps goes in front.
    """
    factored = solution.factored
    if kind == "linear":
        (factor,) = factored.factors
        return linear(factor.weight.flatten(1), factor.bias)
    convs = OrderedDict(
        (name, conv_from_weights(f.weight, f.bias, f.geometry)) for name, f in zip(factored.names, factored.factors)
    )
    if sampled and solution.selection is not None:
        select = Select.of(solution.selection.channels, solution.selection.n_total)
        return nn.Sequential(OrderedDict(select=select, **convs))
    return next(iter(convs.values())) if len(convs) == 1 else nn.Sequential(convs)


def apply_solution(network, graph, solution):
    """Put a layer's solution into a network: narrow its producer and what lies between, replace the layer.

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
    """
    layer = graph.layer(solution.name)
    changed, space = [], layer.input_space
    if solution.selection is not None and space is None:
        raise DecompError(layer.name, "its input cannot be narrowed", got=layer.left_alone.get("prune"))
    if solution.selection is not None and not space.sampled:
        kept = {graph.own_space(layer).name: solution.selection.channels.cpu().numpy()}
        changed = [path for path in shrink(network, graph.spaces, kept) if path != layer.name]
    replacement = module_from_factors(solution, layer.kind, space is not None and space.sampled)
    old = network.get_submodule(layer.name)
    replacement.to(device=next(old.parameters()).device).train(old.training)
    set_module(network, layer.name, replacement)
    return [*changed, layer.name]
