"""Batch normalisation: fold it into the layers, insert it again for training, and fold it afterwards.

The stages see a network whose normalisations are folded into its layers. A network trained without them becomes
overconfident: batch statistics also regularise. Training therefore inserts normalisations where the original had them.
Before and after it the network computes the same without them: no emitted network holds an inserted one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from decomp.graph.weight_reads import unchangeable
from decomp.modules.convolution import CONVOLUTIONS, Convolution
from decomp.modules.replace import set_module


def last_convolutions(network: nn.Module, layers: Iterable[str]) -> list[str]:
    """Paths of the convolutions that write the outputs of layers, also of those that became chains.

    Parameters
    ----------
    network : torch.nn.Module
    layers : iterable of str
        Module paths; those that are neither a convolution nor a chain of convolutions are skipped.

    Returns
    -------
    list of str
    """
    found = (end_of(network, path) for path in layers)
    return [path for path, module in found if can_be_normalised(module) and not isinstance(module, nn.Linear)]


def end_of(network: nn.Module, layer: str) -> tuple[str, nn.Module]:
    """Path and module that write the outputs of a layer: the last one of a chain, or the layer itself."""
    module = network.get_submodule(layer)
    if isinstance(module, nn.Sequential) and len(module):
        return f"{layer}.{list(module._modules)[-1]}", module[-1]
    return layer, module


def can_be_normalised(module: nn.Module) -> bool:
    """Whether a batch normalisation behind a module can be folded into it."""
    return isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and _can_be_fused(module))


@torch.no_grad()
def insert_behind(
    network: nn.Module, paths: Sequence[str], batches: Iterable[torch.Tensor], places: Mapping[str, str] | None = None
) -> None:
    """Insert a batch normalisation behind layers, in place, so that the network computes the same as before.

    The running statistics are those of the layer's outputs; scale and shift undo them. In training mode, where
    the statistics are those of the batch, the outputs are therefore about the same too.

    Parameters
    ----------
    network : torch.nn.Module
    paths : sequence of str
        Of convolutions, see :func:`last_convolutions`, or linear layers with outputs of shape (B, n).
    batches : iterable of torch.Tensor, shape (B, C, H, W)
        Images on the network's device, in batches of one size.
    places : mapping of str to str, optional
        Paths at which the normalisations are put, by the paths of their layers: of modules that follow the layers and
        do nothing. Without one, the layer becomes a sequence of itself and its normalisation.
    """
    if not paths:
        return
    moments = _output_moments(network.eval(), paths, batches)
    for path in paths:
        layer = network.get_submodule(path)
        assert isinstance(layer, (*CONVOLUTIONS, nn.Linear))
        mean, variance = moments[path]
        kind = nn.BatchNorm1d if isinstance(layer, nn.Linear) else nn.BatchNorm2d
        norm = kind(len(mean), device=layer.weight.device, dtype=layer.weight.dtype).eval()
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean if layer.bias is None else mean - layer.bias)
        norm.running_var.copy_(variance)
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(mean)
        layer.bias = None  # the shift replaces it, and the normalisation would subtract it again
        if places is None:
            set_module(network, path, nn.Sequential(OrderedDict(conv=layer, norm=norm)))
        else:
            set_module(network, places[path], norm)


def fold_inserted(network: nn.Module, paths: Iterable[str]) -> None:
    """Undo :func:`insert_behind` in place: the normalisations are folded into their convolutions, as trained."""
    network.eval()
    for path in paths:
        sequence = network.get_submodule(path)
        conv, norm = sequence.get_submodule("conv"), sequence.get_submodule("norm")
        assert isinstance(conv, CONVOLUTIONS) and isinstance(norm, nn.BatchNorm2d)
        set_module(network, path, _fused_convolution(conv, norm))


def _can_be_fused(conv: Convolution) -> bool:
    """torch scales the axis of a transposed convolution's weight that has only the outputs of one group."""
    return conv.groups == 1 or isinstance(conv, nn.Conv2d)


def _fused_convolution(conv: Convolution, norm: nn.BatchNorm2d) -> Convolution:
    return fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))


def fold_at(network: nn.Module, places: Mapping[str, str]) -> None:
    """Fold normalisations into their layers, in place: those at the values of `places` into those at the keys."""
    network.eval()
    for path, place in places.items():
        fused = _fused(network.get_submodule(path), network.get_submodule(place))
        if fused is not None:
            set_module(network, path, fused)
            set_module(network, place, nn.Identity())


def _output_moments(
    network: nn.Module, paths: Sequence[str], batches: Iterable[torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance (n,) of every channel of the layers' outputs."""
    means: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    variances: dict[str, list[torch.Tensor]] = {path: [] for path in paths}

    def watch(path: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            axes = [axis for axis in range(output.dim()) if axis != 1]
            variance, mean = torch.var_mean(output.float(), axes, correction=0)
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


def fold_bn(graph_module: fx.GraphModule) -> list[tuple[str, str]]:
    """Fold every batch normalisation that directly follows a convolution or linear layer into it.

    Works in place on a traced network in evaluation mode; the normalisation becomes an ``nn.Identity``. The
    layer's own eps is used. Where a layer is called several times, the same normalisation must follow each call and
    nothing else; otherwise both are left as they are.

    Parameters
    ----------
    graph_module : torch.fx.GraphModule

    Returns
    -------
    list of (str, str)
        Paths (layer, normalisation) that were folded.
    """
    modules = dict(graph_module.named_modules())
    fixed = unchangeable(graph_module)
    calls: dict[object, list[fx.Node]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(node.target, []).append(node)
    folded: list[tuple[str, str]] = []
    for node in graph_module.graph.nodes:
        if node.op != "call_module" or not node.args or getattr(node.args[0], "op", None) != "call_module":
            continue
        before, bn = node.args[0], modules[node.target]
        if before.target in fixed or node.target in fixed:
            continue
        users = {user for call in calls[before.target] for user in call.users}
        if users != set(calls[node.target]) or (before.target, node.target) in folded:
            continue
        fused = _fused(modules[before.target], bn)
        if fused is not None:
            set_module(graph_module, before.target, fused)
            set_module(graph_module, node.target, nn.Identity())
            folded.append((before.target, node.target))
    return folded


def _fused(layer: nn.Module, bn: nn.Module) -> nn.Module | None:
    """A layer with a normalisation folded into it, or None where that is not possible."""
    if isinstance(layer, CONVOLUTIONS) and type(bn) is nn.BatchNorm2d and bn.running_mean is not None:
        return _fused_convolution(layer, bn) if _can_be_fused(layer) else None
    if isinstance(layer, nn.Linear) and type(bn) is nn.BatchNorm1d and bn.running_mean is not None:
        return fuse_linear_bn_eval(layer, bn)
    return None
