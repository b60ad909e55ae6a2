"""Losses for training: cross-entropy and distillation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import logits

from .gradients import Loss
from .targets import from_rows

LABEL_SMOOTHING = 0.1
#: Share of the distillation term where there are labels too.
DISTILL_SHARE = 0.5


def classification_loss(module: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
    """Cross-entropy with label smoothing, of a network that returns class scores."""
    assert labels is not None
    return functional.cross_entropy(module(images).float(), labels, label_smoothing=LABEL_SMOOTHING)


def loss_for(labels: str, distill: bool, original: nn.Module | None, outputs: Outputs) -> Loss:
    """The loss of a fine-tuning, for :func:`decomp.pipelines.training.loop.fit`.

    Parameters
    ----------
    labels : {'train', 'none'}
        'none': :meth:`decomp.execution.output_change.Outputs.loss` towards the outputs of the original; the loss then
        takes those that were computed before, as :func:`decomp.pipelines.training.targets.as_rows` keeps them, in
        place of labels. 'train': cross-entropy.
    distill : bool
        With labels: the mean of cross-entropy and that divergence (Hinton et al. 2015 at temperature 1).
    original : torch.nn.Module, optional
        In eval mode; not needed for cross-entropy alone.
    outputs : decomp.execution.output_change.Outputs
        With labels, class scores alone.
    """

    def targets_for(images: Tensor) -> Mapping[str, Tensor]:
        assert original is not None
        with torch.no_grad():
            return outputs.named(original(images), len(images))

    def loss(network: nn.Module, images: Tensor, targets: Tensor | None) -> Tensor:
        got = outputs.named(network(images), len(images))
        if labels == "none":
            return outputs.loss(targets_for(images) if targets is None else from_rows(targets, outputs), got)
        assert targets is not None and outputs.scores is not None
        value = functional.cross_entropy(logits(got[outputs.scores.name].float(), outputs.scores), targets)
        if distill:
            value = (1 - DISTILL_SHARE) * value + DISTILL_SHARE * outputs.change(targets_for(images), got).mean()
        return value

    return loss
