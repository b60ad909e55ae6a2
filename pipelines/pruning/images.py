"""Images for criteria that need some, and the loss of the criterion 'taylor', which needs no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from decomp import seeds
from decomp.criteria.gradients import Loss, own_output_loss
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import logits

from ..measure.devices import to_device
from .choice import Images


def batched(
    images: Callable[[int, int], Tensor], fitted: int, n: int, size: int, device: torch.device, outputs: Outputs,
    seed: int,
) -> Images:  # fmt: skip
    """Images in batches.

    Parameters
    ----------
    images : callable
        ``images(start, stop)`` gives some of them, shape (B, C, H, W).
    fitted, n, size : int
        How many come first, for criteria and statistics; how many there are, the others held out; how many at a time.
    device : torch.device
    outputs : decomp.execution.output_change.Outputs
        Of the network.
    seed : int
        Of the classes and signs that the loss draws.

    Returns
    -------
    Images
    """

    def batches(start: int, stop: int) -> Iterator[Tensor]:
        for first in range(start, stop, size):
            yield to_device(images(first, min(first + size, stop)), device)

    return Images(lambda: batches(0, fitted), lambda: batches(fitted, n), outputs, loss_of(outputs, seed))


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
