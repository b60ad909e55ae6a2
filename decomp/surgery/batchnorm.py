"""Batch normalisations behind the layers again while a network is trained, and folded away after it.

The stages see a network whose normalisations are folded into its layers. Trained like that it becomes surer of its
answers than it is right: batch statistics also regularise. So training puts normalisations back where the original had
them. Before and after it the network computes what it computes without them: nothing that is emitted holds one of ours.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from decomp.modules.replace import set_module


def last_convolutions(network, layers):
    """Paths of the convolutions that write the outputs of layers, also of those that became chains.

    Parameters
    ----------
    network : torch.nn.Module
    layers : iterable of str
        Module paths; those that are no convolution and no chain of them are passed over.

    Returns
    -------
    list of str
    """
    found = []
    for path in layers:
        module = network.get_submodule(path)
        if isinstance(module, nn.Sequential) and len(module):
            path, module = f"{path}.{list(module._modules)[-1]}", module[-1]
        if isinstance(module, nn.Conv2d):
            found.append(path)
    return found


@torch.no_grad()
def insert_behind(network, paths, batches):
    """Put a batch normalisation behind convolutions, in place, so that the network computes what it did.

    The running statistics are those of the convolution's outputs, scale and shift undo them. In training mode, where
    the statistics are those of the batch, the outputs are therefore about the same too.

    Parameters
    ----------
    network : torch.nn.Module
    paths : list of str
        See :func:`last_convolutions`.
    batches : iterable of torch.Tensor, shape (B, C, H, W)
        Images on the network's device, in batches of one size.
    """
    if not paths:
        return
    moments = _moments(network.eval(), paths, batches)
    for path in paths:
        conv = network.get_submodule(path)
        mean, variance = moments[path]
        norm = nn.BatchNorm2d(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype).eval()
        norm.running_mean.copy_(mean if conv.bias is None else mean - conv.bias)
        norm.running_var.copy_(variance)
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(mean)
        conv.bias = None  # the shift does its work, and the normalisation would take it out again
        set_module(network, path, nn.Sequential(OrderedDict(conv=conv, norm=norm)))


def fold_inserted(network, paths):
    """Undo :func:`insert_behind` in place: the normalisations are folded into their convolutions, as trained."""
    network.eval()
    for path in paths:
        pair = network.get_submodule(path)
        set_module(network, path, fuse_conv_bn_eval(pair.conv, pair.norm))


def _moments(network, paths, batches):
    """Mean and variance of every channel of the convolutions' outputs."""
    means, variances = {path: [] for path in paths}, {path: [] for path in paths}

    def watch(path):
        def hook(module, inputs, output):
            variance, mean = torch.var_mean(output.float(), (0, 2, 3), correction=0)
            means[path].append(mean)
            variances[path].append(variance)

        return network.get_submodule(path).register_forward_hook(hook)

    hooks = [watch(path) for path in paths]
    try:
        for images in batches:
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    moments = {}
    for path in paths:
        # Batches of one size: the variance within them and that of their means add up.
        mean, within = torch.stack(means[path]), torch.stack(variances[path])
        moments[path] = mean.mean(0), within.mean(0) + mean.var(0, correction=0)
    return moments


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
