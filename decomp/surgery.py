"""Change a network without changing what calls what: every edit puts one module in the place of another.

Because only modules are exchanged, the same list of edits applies to the traced network and to the
original class, and an edit is data: the path of a module and what it becomes.
Three levels: arithmetic on tensors (``narrow_columns``), on a module (``narrow_outputs``), on a network
(``apply_solution``). Functions on modules return new modules; functions on networks work in place on a
network that the caller has copied.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from decomp.errors import DecompError
from decomp.factors import FactoredConv, Geometry, Selection


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


def set_module(root, path, module):
    """Put a module in the place of another."""
    parent, _, name = path.rpartition(".")
    holder = root.get_submodule(parent) if parent else root
    if isinstance(holder, (nn.Sequential, nn.ModuleList)):
        holder[int(name) if name.isdigit() else list(holder._modules).index(name)] = module
    else:
        setattr(holder, name, module)


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


# -- narrowing ---------------------------------------------------------------------------------------------


def narrow_outputs(module, keep):
    """The same layer with only the kept output channels.

    Parameters
    ----------
    module : nn.Conv2d, nn.Linear, nn.Sequential of such, nn.BatchNorm1d/2d or nn.PReLU
        Of a Sequential (a chain of factors) the last is narrowed.
    keep : torch.LongTensor
        Ascending indices, at least one.

    Returns
    -------
    nn.Module
    """
    if len(keep) == 0:
        raise DecompError("narrowing", "at least one channel must stay", got="none")
    if isinstance(module, nn.Sequential):
        children = OrderedDict(module.named_children())
        last = next(reversed(children))
        children[last] = narrow_outputs(children[last], keep)
        return nn.Sequential(children)
    if isinstance(module, nn.Conv2d):
        return _conv(module.weight[keep], None if module.bias is None else module.bias[keep], geometry(module))
    if isinstance(module, nn.Linear):
        return _linear(module.weight[keep], None if module.bias is None else module.bias[keep])
    raise DecompError(type(module).__name__, "its outputs cannot be narrowed")


def narrow_carrier(module, keep, width):
    """The same normalisation or PReLU with only the kept channels of a space of ``width`` channels."""
    if isinstance(module, nn.PReLU):
        if module.num_parameters == 1:
            return module
        narrow = nn.PReLU(len(keep), device=module.weight.device)
        narrow.weight = nn.Parameter(module.weight.detach()[keep].clone())
        return narrow
    repeat = module.num_features // width
    index = (keep[:, None] * repeat + torch.arange(repeat, device=keep.device)).flatten()
    narrow = type(module)(
        len(index), eps=module.eps, momentum=module.momentum, affine=module.affine,
        track_running_stats=module.track_running_stats,
    )  # fmt: skip
    state = {k: v[index] if v.dim() else v for k, v in module.state_dict().items()}
    narrow.load_state_dict(state)
    narrow.to(next(iter(state.values())).device)
    return narrow.train(module.training)


def geometry(conv):
    """Stride, padding and dilation of a Conv2d as the solvers know them."""
    return Geometry(conv.stride, conv.padding, conv.dilation, conv.padding_mode)


def _conv(weight, bias, geometry):
    n, c, kh, kw = weight.shape
    conv = nn.Conv2d(c, n, (kh, kw), bias=bias is not None, device="meta", **vars(geometry))
    conv.weight = nn.Parameter(weight.detach().clone().contiguous())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone().contiguous())
    return conv


def _linear(weight, bias):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone().contiguous())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone().contiguous())
    return linear


# -- a layer's solution on the network ---------------------------------------------------------------------


def module_from_factors(solution, kind):
    """The module that a chain of factors stands for: one layer, or a Sequential with named factors."""
    factored = solution.factored
    if kind == "linear":
        (factor,) = factored.factors
        return _linear(factor.weight.flatten(1), factor.bias)
    convs = OrderedDict(
        (name, _conv(f.weight, f.bias, f.geometry)) for name, f in zip(factored.names, factored.factors)
    )
    return next(iter(convs.values())) if len(convs) == 1 else nn.Sequential(convs)


def apply_solution(network, graph, solution):
    """Put a layer's solution into a network: narrow its producer and what lies between, replace the layer.

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
    changed = []
    if solution.keep is not None:
        space = layer.input_space
        if space is None:
            raise DecompError(layer.name, "its input cannot be narrowed", got=layer.left_alone.get("prune"))
        keep = solution.keep.keep
        set_module(network, space.producer, narrow_outputs(network.get_submodule(space.producer), keep))
        for path in space.carriers:
            set_module(network, path, narrow_carrier(network.get_submodule(path), keep, space.width))
        changed += [space.producer, *space.carriers]
    replacement = module_from_factors(solution, layer.kind)
    old = network.get_submodule(layer.name)
    replacement.to(device=next(old.parameters()).device).train(old.training)
    set_module(network, layer.name, replacement)
    return [*changed, layer.name]
