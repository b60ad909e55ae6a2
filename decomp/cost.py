"""What a network costs: multiply-accumulates and parameters, counted on the network as it stands.

One multiply-accumulate is one multiplication and one addition. Counted are convolutions (also transposed) and
linear layers, for one image; biases, normalisation, activations and pooling are not counted.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FUNCTIONAL = "(functional convolutions)"
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COUNTED = (*_CONVS, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one image.

    Attributes
    ----------
    macs : int
        Multiply-accumulates of all convolutions and linear layers.
    params : int
        Number of parameters, each counted once.
    per_layer : dict of str to int
        Multiply-accumulates by module path; of convolutions that no module makes (weights that are computed on the
        way, such as standardised ones), under `FUNCTIONAL`.
    """

    macs: int
    params: int
    per_layer: dict


def cost(module, input_shape):
    """Count by running one image of zeros through the network with hooks, which are removed again.

    Parameters
    ----------
    module : torch.nn.Module
    input_shape : tuple of int
        (C, H, W).

    Returns
    -------
    Cost
    """
    per_layer = {}

    def counter(name):
        def hook(layer, inputs, named, output):
            functional.inside -= 1
            x = inputs[0] if inputs else named["input"]
            per_layer[name] = per_layer.get(name, 0) + module_macs(layer, x, output)

        return hook

    functional = _FunctionalConvolutions(per_layer)
    layers = {name: m for name, m in module.named_modules() if isinstance(m, COUNTED)}
    hooks = [m.register_forward_hook(counter(name), with_kwargs=True) for name, m in layers.items()]
    hooks += [m.register_forward_pre_hook(functional.enter) for m in layers.values()]
    was_training = module.training
    parameter = next(module.parameters(), torch.zeros(()))
    try:
        with torch.no_grad(), functional:
            module.eval()(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return Cost(sum(per_layer.values()), sum(p.numel() for p in module.parameters()), per_layer)


class _FunctionalConvolutions(TorchFunctionMode):
    """Counts convolutions outside of the modules that are counted by hooks."""

    names = ("conv1d", "conv2d", "conv3d")

    def __init__(self, per_layer):
        super().__init__()
        self.per_layer, self.inside = per_layer, 0
        self.functions = {getattr(place, name) for place in (F, torch) for name in self.names}

    def enter(self, *_):
        self.inside += 1

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function in self.functions and not self.inside:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            # (n, c / groups, ...): each output entry sums up one kernel of all the channels of its group.
            macs = output.numel() * weight[0].numel()
            self.per_layer[FUNCTIONAL] = self.per_layer.get(FUNCTIONAL, 0) + macs
        return output


def module_macs(layer, x, y):
    """Multiply-accumulates of a convolution or linear layer that made y from x, all images together."""
    if isinstance(layer, nn.Linear):
        return y.numel() * layer.in_features
    kernel = 1
    for size in layer.kernel_size:
        kernel *= size
    if isinstance(layer, _TRANSPOSED):
        return x.numel() * layer.out_channels // layer.groups * kernel
    return y.numel() * layer.in_channels // layer.groups * kernel


def chain_macs(layer, width_in, width_out, spatial_rank=None, channel_rank=None):
    """Multiply-accumulates of one layer after its three steps, by formula.

    Parameters
    ----------
    layer : decomp.graph.Layer
    width_in, width_out : int or numpy.ndarray
        Channels it still reads and writes. For a linear layer behind a flatten: columns still read.
    spatial_rank, channel_rank : int, numpy.ndarray or None
        None: that step is not applied.

    Returns
    -------
    int or numpy.ndarray
        The vertical filters run on an output that is already as high as the layer's but still as wide as
        its input.
    """
    (kh, kw), (height, width), width_before = layer.kernel, layer.out_hw, layer.in_hw[1]
    filters = width_out if channel_rank is None else channel_rank
    if spatial_rank is None:
        macs = width_in * kh * kw * filters * height * width
    else:
        macs = spatial_rank * (width_in * kh * height * width_before + filters * kw * height * width)
    if channel_rank is not None:
        macs = macs + channel_rank * width_out * height * width
    return macs


class MacsCost:
    """Multiply-accumulates as the cost to be shared out.

    Depthwise convolutions between two layers are counted with the layer that reads them, since they are as wide.

    What sizes are chosen for is only ever asked through ``layer`` and ``total``; :class:`ParamsCost` and
    :class:`decomp.latency.LatencyCost` answer the same questions.

    Parameters
    ----------
    graph : decomp.graph.NetworkGraph
    per_layer : dict of str to int
        Counted on the network as it is, see :func:`cost`: what the graph does not treat costs what it did.
    total : int, optional
        Cost of the original, where whole channel spaces of the network have been narrowed before.

    Attributes
    ----------
    name, unit : str
    total : float
        Cost of the original network.
    rest : float
        What lies outside the layers, and stays.
    """

    name, unit = "macs", "multiply-accumulates"

    def __init__(self, graph, per_layer, total=None):
        self.per_layer, now = per_layer, sum(per_layer.values())
        self.total = now if total is None else total
        self.rest = now - sum(per_layer[layer.name] for layer in graph.layers)
        self._carried = {}
        for layer in graph.layers:
            paths = layer.input_space.carriers if layer.input_space else ()
            self._carried.update({path: layer.name for path in paths if path in per_layer})
        self._per_channel = dict.fromkeys((layer.name for layer in graph.layers), 0)
        for path, reader in self._carried.items():
            self._per_channel[reader] += per_layer[path] // graph.layer(reader).input_space.width
        self._repeats = {la.name: la.input_space.repeat for la in graph.layers if la.input_space is not None}

    def layer(self, layer, width_in, width_out, spatial_rank=None, channel_rank=None):
        """Cost of one layer after its three steps, an array where an argument is one; see :func:`chain_macs`."""
        if not layer.fitted:
            return 0 if layer.name in self._carried else self.per_layer[layer.name]
        carried = self._per_channel[layer.name] * (width_in // self._repeats.get(layer.name, 1))
        return chain_macs(layer, width_in, width_out, spatial_rank, channel_rank) + carried


class ParamsCost:
    """Parameters as the cost to be shared out; the interface of :class:`MacsCost`.

    A fitted layer has a bias, also where the original had none. Normalisation and PReLU between two layers are
    counted with the layer that reads them.

    Parameters
    ----------
    graph : decomp.graph.NetworkGraph
        Its module gives what is counted.
    total : int, optional
        As for :class:`MacsCost`.
    """

    name, unit = "params", "parameters"

    def __init__(self, graph, total=None):
        module = graph.module
        now = sum(p.numel() for p in module.parameters())
        self.total = now if total is None else total
        self._unfitted, self._carried, covered = {}, {}, 0
        read = {path for layer in graph.layers if layer.input_space for path in layer.input_space.carriers}
        for layer in graph.layers:
            # A depthwise convolution between two layers is counted with the one that reads it.
            own = 0 if layer.name in read else sum(p.numel() for p in module.get_submodule(layer.name).parameters())
            self._unfitted[layer.name] = own
            space = layer.input_space
            # Tied numbers, as of a PReLU with one slope for all channels, do not go with the channels.
            carried = [p for path in space.carriers for p in module.get_submodule(path).parameters()] if space else []
            carried = sum(p.numel() for p in carried if p.numel() >= space.width)
            self._carried[layer.name] = carried / layer.in_channels
            covered += own + carried
        self.rest = now - covered

    def layer(self, layer, width_in, width_out, spatial_rank=None, channel_rank=None):
        """Cost of one layer after its three steps, see :meth:`MacsCost.layer`."""
        if not layer.fitted:
            return self._unfitted[layer.name]
        kh, kw = layer.kernel
        filters = width_out if channel_rank is None else channel_rank
        if spatial_rank is None:
            params = width_in * kh * kw * filters
        else:
            params = spatial_rank * (width_in * kh + filters * kw)
        if channel_rank is not None:
            params = params + channel_rank * width_out
        return params + width_out + self._carried[layer.name] * width_in
