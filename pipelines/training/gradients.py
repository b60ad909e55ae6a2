"""Gradients of the loss of one batch, which may be computed in parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..measure.devices import autocast

Loss = Callable[[nn.Module, Tensor, "Tensor | None"], Tensor]


def add_gradients(
    module: nn.Module, loss: Loss, images: Tensor, labels: Tensor | None, device: torch.device, *,
    n_parts: int = 1, weight: float = 1.0, precision: str | None = None,
) -> Tensor:  # fmt: skip
    """Add the gradients of the loss of a batch to those of the module's parameters.

    A loss is the mean over images, so that the gradients of the parts, each weighed by its share of the images, are
    those of the batch up to rounding. Batch normalisations that use the statistics of their images are the exception:
    they get those of a part.

    Parameters
    ----------
    module : torch.nn.Module
        In training mode.
    loss : callable
        ``loss(module, images, labels)``; called under autocast.
    images : torch.Tensor, shape (B, C, H, W)
    labels : torch.Tensor, shape (B,), optional
    device : torch.device
        That of both.
    n_parts : int
        Neighbouring images, at most one more in one part than in another. Every process makes as many backward
        passes, also where it has fewer images.
    weight : float
        Factor of the loss.
    precision : {'float32', 'bfloat16'}, optional
        The usual one of the device where not given.

    Returns
    -------
    torch.Tensor
        The loss times `weight`, without a graph.
    """
    total: Tensor | None = None
    targets = [None] * n_parts if labels is None else labels.tensor_split(n_parts)
    for part, target in zip(images.tensor_split(n_parts), targets):
        share = weight * (len(part) / len(images))
        if not len(part):
            part, target = images[:1], None if labels is None else labels[:1]  # counts nothing
        with autocast(device, precision):
            value = loss(module, part, target)
        value = value if share == 1 else value * share
        value.backward()
        total = value.detach() if total is None else total + value.detach()
    assert total is not None
    return total
