"""Losses for training: cross-entropy and distillation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from decomp.execution.output_change import Outputs, squared_difference
from decomp.execution.output_kinds import logits

from .loop import Loss

#: Share of the distillation term where there are labels too.
DISTILL_SHARE = 0.5


def loss_for(labels: str, distill: bool, original: nn.Module | None, outputs: Outputs) -> Loss:
    """The loss of a fine-tuning, for :func:`decomp.pipelines.training.loop.fit`.

    Parameters
    ----------
    labels : {'train', 'none'}
        'none': the mean change of the outputs, see :mod:`decomp.execution.output_change`, to which every output of
        class scores adds the squared change of its scores over their variance. A sure original has almost the same
        probabilities on all images of a class, and few images then say little; its scores say more. 'train':
        cross-entropy.
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
            wanted = targets_for(images)
            return outputs.change(wanted, got).mean() + _score_change(outputs, wanted, got)
        assert targets is not None and outputs.scores is not None
        value = functional.cross_entropy(logits(got[outputs.scores.name].float(), outputs.scores), targets)
        if distill:
            value = (1 - DISTILL_SHARE) * value + DISTILL_SHARE * outputs.change(targets_for(images), got).mean()
        return value

    return loss


def _score_change(outputs: Outputs, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Tensor | float:
    """Squared change of class scores, each image's about their mean, over their variance; the mean over the outputs."""
    changes = [
        squared_difference(_about_mean(wanted[entry.name]), _about_mean(got[entry.name])).mean() / entry.variance
        for entry in outputs.each
        if entry.kind == "scores"
    ]
    return sum(changes) / len(outputs.each) if changes else 0.0


def _about_mean(scores: Tensor) -> Tensor:
    # A number that is added to all scores of an image changes no probability.
    return scores - scores.mean(1, keepdim=True)
