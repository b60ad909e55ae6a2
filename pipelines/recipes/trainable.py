"""Batch normalisations for a training loop of one's own: put back where they were folded, and folded again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from decomp.errors import UsageError
from decomp.surgery import batchnorm

from ...data import given
from ...data.plain_network import dtype_of, unwrapped
from ..run.saving import record_of

#: Fewer images give statistics that are too noisy.
LEAST_IMAGES = 16


def trainable(
    network: nn.Module, images: Any, *, n_images: int = 2000, batch_size: int = 100, seed: int = 0
) -> nn.Module:
    """A copy of a network with batch normalisations where the original had them, for a training loop of one's own.

    In evaluation mode the copy computes what the network computes. In training mode each normalisation uses the
    statistics of the batch, as in the original's training.

    Parameters
    ----------
    network : torch.nn.Module
        From :func:`decomp.compress` or :func:`decomp.load`; it is not changed.
    images : Tensor, ndarray, Dataset or iterable of batches
        Training images as for :func:`decomp.compress`, from which the running statistics are taken.
    n_images : int
        Upper limit of the images.
    batch_size : int
        Images at a time.
    seed : int
        Of the order in which images of a Dataset are drawn.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the network's device. :func:`folded` folds the normalisations again, and
        :func:`decomp.save` keeps both forms.

    Raises
    ------
    UsageError
        The network was not made by decomp, or its original had no batch normalisations.

    Notes
    -----
    With the mean m and the variance v of a channel of the layer's outputs, the running statistics are m and v, the
    scale is sqrt(v + eps), and the shift is m: in evaluation mode the normalisation then passes its input on. The
    layer's bias goes into the shift.

    Examples
    --------
    >>> network = decomp.trainable(network, loader)  # doctest: +SKIP
    """
    whole = copy.deepcopy(unwrapped(network)).eval()
    module, places = _places(whole)
    absent = {layer: place for layer, place in places.items() if type(module.get_submodule(place)) is nn.Identity}
    if not places:
        rule = "has no batch normalisations to put back: the original had none, or an earlier version made it"
        fix = "train it as it is"
        raise UsageError("network", rule, fix=fix)
    if dtype_of(module) not in (torch.float32, torch.float64):
        got, fix = str(dtype_of(module)).removeprefix("torch."), "give network.float()"
        raise UsageError("network", "must be in float32 to be trained", got=got, fix=fix)
    pixels = given.gather(images, n_images, seed)[0][:n_images]
    if len(pixels) < LEAST_IMAGES:
        raise UsageError("images", f"there must be at least {LEAST_IMAGES}", got=len(pixels))
    size = min(batch_size, len(pixels))
    pixels = pixels[: len(pixels) // size * size]
    parameter = next(module.parameters())
    batches = (part.to(parameter.device, parameter.dtype) for part in pixels.split(size))
    batchnorm.insert_behind(module, list(absent), batches, absent)
    return whole


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network whose batch normalisations are folded into its layers, as :func:`decomp.compress` returns it.

    Parameters
    ----------
    network : torch.nn.Module
        From :func:`trainable`, trained or not, or loaded with such normalisations; it is not changed.

    Returns
    -------
    torch.nn.Module
        In evaluation mode.

    Raises
    ------
    UsageError
        The network was not made by decomp.
    """
    whole = copy.deepcopy(unwrapped(network)).eval()
    module, places = _places(whole)
    batchnorm.fold_at(module, places)
    return whole


def _places(network: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """The module that decomp made, and the places of its normalisations by the paths of the layers in front of them."""
    module, record = record_of(network)
    there = dict(module.named_modules(remove_duplicate=False))
    places: dict[str, str] = {}
    for layer, place in record["meta"].get("normalised", []):
        if layer in there and place in there:
            path, end = batchnorm.end_of(module, layer)
            places |= {path: place} if batchnorm.can_be_normalised(end) else {}
    return module, places
