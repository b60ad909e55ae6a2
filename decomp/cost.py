"""What a network costs: multiply-accumulates and parameters, counted on the network as it stands.

One multiply-accumulate is one multiplication and one addition. Counted are convolutions (also transposed) and
linear layers, for one image; biases, normalisation, activations and pooling are not counted.
"""

from dataclasses import dataclass

import torch
from torch import nn

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
        Multiply-accumulates by module path.
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
        def hook(layer, inputs, output):
            per_layer[name] = per_layer.get(name, 0) + _macs(layer, inputs[0], output)

        return hook

    counted = (*_CONVS, *_TRANSPOSED, nn.Linear)
    hooks = [m.register_forward_hook(counter(name)) for name, m in module.named_modules() if isinstance(m, counted)]
    was_training = module.training
    parameter = next(module.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return Cost(sum(per_layer.values()), sum(p.numel() for p in module.parameters()), per_layer)


def _macs(layer, x, y):
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
