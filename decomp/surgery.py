"""Change a network without changing what calls what: every edit puts one module in the place of another.

Because only modules are exchanged, the same list of edits applies to the traced network and to the
original class, and an edit is data: the path of a module and what it becomes.
Functions on modules return new modules; functions on networks work in place on a network that the caller has
copied. How a module becomes narrower is known by :mod:`decomp.narrowing`.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from decomp.errors import DecompError
from decomp.factors import FactoredConv, Geometry, Selection
from decomp.narrowing import Select, linear, set_module, shrink, with_parameters


@dataclass(frozen=True)
class LayerSolution:
    """What one layer becomes.

    Attributes
    ----------
    name : str
        Module path of the layer.
    keep : decomp.factors.Selection or None
        Channels of its input space that stay; None when the input is not narrowed.
    factored : decomp.factors.FactoredConv
        The chain of convolutions that replaces the layer. A linear layer is one dense factor whose kernel is
        the flattened map.
    """

    name: str
    keep: Selection | None
    factored: FactoredConv


# -- batch normalisation -----------------------------------------------------------------------------------


def fold_bn(graph_module):
    """Fold every batch normalisation that directly follows a convolution or linear layer into it.

    Works in place on a traced network in evaluation mode; the normalisation becomes an ``nn.Identity``. The
    layer's own eps is used. A layer or normalisation that is called several times is left as it is.

    Returns
    -------
    list of (str, str)
        Paths (layer, normalisation) that were folded.
    """
    modules = dict(graph_module.named_modules())
    calls = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    folded = []
    for node in graph_module.graph.nodes:
        if node.op != "call_module" or not node.args or getattr(node.args[0], "op", None) != "call_module":
            continue
        before, layer, bn = node.args[0], modules[node.args[0].target], modules[node.target]
        fuse = _fusion(layer, bn)
        if fuse is None or len(before.users) > 1 or calls[before.target] > 1 or calls[node.target] > 1:
            continue
        set_module(graph_module, before.target, fuse(layer, bn))
        set_module(graph_module, node.target, nn.Identity())
        folded.append((before.target, node.target))
    return folded


def _fusion(layer, bn):
    if isinstance(layer, nn.Conv2d) and type(bn) is nn.BatchNorm2d and bn.running_mean is not None:
        return fuse_conv_bn_eval
    if isinstance(layer, nn.Linear) and type(bn) is nn.BatchNorm1d and bn.running_mean is not None:
        return fuse_linear_bn_eval
    return None


# -- a layer's solution on the network ---------------------------------------------------------------------


def geometry(conv):
    """Stride, padding and dilation of a Conv2d as the solvers know them."""
    return Geometry(conv.stride, conv.padding, conv.dilation, conv.padding_mode)


def _conv(weight, bias, geometry):
    n, c, kh, kw = weight.shape
    conv = nn.Conv2d(c, n, (kh, kw), bias=bias is not None, device="meta", **vars(geometry))
    return with_parameters(conv, weight, bias)


def module_from_factors(solution, kind, sampled=False):
    """The module that a chain of factors stands for: one layer, or a Sequential with named factors.

    With ``sampled``, a selection of the channels that the solution keeps goes in front.
    """
    factored = solution.factored
    if kind == "linear":
        (factor,) = factored.factors
        return linear(factor.weight.flatten(1), factor.bias)
    convs = OrderedDict(
        (name, _conv(f.weight, f.bias, f.geometry)) for name, f in zip(factored.names, factored.factors)
    )
    if sampled and solution.keep is not None:
        return nn.Sequential(OrderedDict(select=Select.of(solution.keep.keep, solution.keep.n_total), **convs))
    return next(iter(convs.values())) if len(convs) == 1 else nn.Sequential(convs)


def apply_solution(network, graph, solution):
    """Put a layer's solution into a network: narrow its producer and what lies between, replace the layer.

    Where others need the channels too, the layer gets a selection in front of it instead.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place; has the module paths of ``graph``.
    graph : decomp.graph.NetworkGraph
    solution : LayerSolution

    Returns
    -------
    list of str
        Paths of the modules that were exchanged.
    """
    layer = graph.layer(solution.name)
    changed, space = [], layer.input_space
    if solution.keep is not None and space is None:
        raise DecompError(layer.name, "its input cannot be narrowed", got=layer.left_alone.get("prune"))
    if solution.keep is not None and not space.sampled:
        kept = {graph.own_space(layer).name: solution.keep.keep.cpu().numpy()}
        changed = [path for path in shrink(network, graph.spaces, kept) if path != layer.name]
    replacement = module_from_factors(solution, layer.kind, space is not None and space.sampled)
    old = network.get_submodule(layer.name)
    replacement.to(device=next(old.parameters()).device).train(old.training)
    set_module(network, layer.name, replacement)
    return [*changed, layer.name]
