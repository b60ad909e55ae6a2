"""Losses for training: cross-entropy and distillation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from decomp.execution.outputs import output_divergence

from .loop import Loss

#: Share of the distillation term where there are labels too.
DISTILL_SHARE = 0.5


def loss_for(labels: str, distill: bool, original: nn.Module | None) -> Loss:
    """The loss of a fine-tuning, for :func:`decomp.pipelines.training.loop.fit`.

    Parameters
    ----------
    labels : {'train', 'none'}
        'none': the mean Kullback–Leibler divergence from the original's class probabilities. 'train': cross-entropy.
    distill : bool
        With labels: the mean of cross-entropy and that divergence (Hinton et al. 2015 at temperature 1).
    original : torch.nn.Module, optional
        In eval mode; not needed for cross-entropy alone.
    """

    def divergence(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        assert original is not None
        with torch.no_grad():
            target = original(images)
        return output_divergence(target, logits).mean()

    def loss(network: nn.Module, images: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
        logits = network(images)
        if labels == "none":
            return divergence(images, logits)
        assert targets is not None
        value = functional.cross_entropy(logits.float(), targets)
        if distill:
            value = (1 - DISTILL_SHARE) * value + DISTILL_SHARE * divergence(images, logits)
        return value

    return loss
