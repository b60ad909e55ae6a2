"""Losses for training: cross-entropy and distillation."""

import torch
from torch.nn import functional

from decomp.execution.outputs import output_divergence

#: Share of the distillation term where there are labels too.
DISTILL_SHARE = 0.5


def loss_for(labels, distill, original):
    """The loss callable for :func:`decomp.pipelines.training.loop.fit`."""

    def distance(images, logits):
        with torch.no_grad():
            target = original(images)
        # Hinton et al. 2015, at temperature 1.
        return output_divergence(target, logits).mean()

    def loss(network, images, targets):
        logits = network(images)
        if labels == "none":
            return distance(images, logits)
        value = functional.cross_entropy(logits.float(), targets)
        if distill:
            value = (1 - DISTILL_SHARE) * value + DISTILL_SHARE * distance(images, logits)
        return value

    return loss
