"""Criteria of activations: statistics of a layer's outputs on images without labels.

The outputs are those of the convolution or linear layer itself, before a normalisation and an activation; the
statistics are those that Li et al., Pruning Filters for Efficient ConvNets, 2017, compare with. A linear layer's output
is a map of one pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from decomp.criteria.names import STATISTICS
from decomp.errors import UsageError


@torch.no_grad()
def activation_statistics(
    network: nn.Module, layers: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Statistics of every output channel of some layers.

    Parameters
    ----------
    network : torch.nn.Module
        Run in evaluation mode; its mode is restored.
    layers : sequence of str
        Paths of convolutions and linear layers. All calls of one that is called several times count.
    batches : iterable of torch.Tensor, shape (B, C, H, W)
        On the network's device.

    Returns
    -------
    dict of str to dict of str to torch.Tensor
        For each layer, by the names in :data:`decomp.criteria.names.STATISTICS`, a float64 number per channel. With
        x the map of a channel for one image:

        mean-mean
            mean over the images of the mean of x.
        mean-std
            mean of the standard deviation of x (divisor: the number of pixels; 0 for a linear layer).
        mean-l1, mean-l2
            mean of the sum of |x|, and of the square root of the sum of x².
        var-l2
            variance over the images of the square root of the sum of x².

    Raises
    ------
    UsageError
        There are no images.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def hook_of(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            of_maps = _of_maps(output)
            sums[layer] = sums[layer] + of_maps if layer in sums else of_maps
            counts[layer] += len(output)

        return hook

    hooks = [network.get_submodule(layer).register_forward_hook(hook_of(layer)) for layer in layers]
    was_training = network.training
    try:
        network.eval()
        for batch in batches:
            network(batch)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    if not all(counts.values()):
        raise UsageError("images", "at least one image is needed for statistics of activations", got="none")
    return {layer: _finished(sums[layer].cpu() / counts[layer]) for layer in layers}


def _of_maps(output: Tensor) -> Tensor:
    """Sums over the images of mean, deviation, l1, l2 and squared l2 of every channel's map, shape (5, channels)."""
    maps = output.detach().flatten(2) if output.dim() > 2 else output.detach()[:, :, None]
    # Some images at a time, as the numbers are taken in twice the precision.
    parts = maps.split(max(1, _PART // max(1, maps[0].numel())))
    return torch.stack([_of_part(part.to(torch.float64)) for part in parts]).sum(dim=0)


def _of_part(maps: Tensor) -> Tensor:
    squares = maps.square().sum(dim=2)
    parts = [maps.mean(dim=2), maps.std(dim=2, correction=0), maps.abs().sum(dim=2), squares.sqrt(), squares]
    return torch.stack([part.sum(dim=0) for part in parts])


def _finished(means: Tensor) -> dict[str, Tensor]:
    mean, deviation, l1, l2, squares = means
    return dict(zip(STATISTICS, (mean, deviation, l1, l2, (squares - l2.square()).clamp_min(0.0))))


_PART = 1 << 22  # pixels at a time
