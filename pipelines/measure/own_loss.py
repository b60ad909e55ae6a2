"""Loss of the criterion 'taylor' that needs no labels, for outputs of any form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decomp import seeds
from decomp.criteria.gradients import Loss, own_output_loss
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import logits


def loss_of(outputs: Outputs, seed: int) -> Loss:
    """The sum over the outputs of :func:`decomp.criteria.gradients.own_output_loss`.

    Its squared derivative counts for an output; each is divided by the output's spread, so that all count the same.
    """
    generator = seeds.generator(seed, "prune", "taylor")
    losses = {entry.name: own_output_loss(generator, scores=entry.kind == "scores") for entry in outputs.each}

    def loss(output: Any, labels: object) -> Tensor:
        named = outputs.named(output)
        parts = [
            losses[entry.name](logits(named[entry.name], entry) if entry.kind == "scores" else named[entry.name], None)
            / entry.spread**0.5
            for entry in outputs.each
        ]
        return torch.stack(parts).sum()

    return loss
