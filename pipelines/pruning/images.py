"""Images for criteria that need some."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from decomp.execution.output_change import Outputs

from ..measure.devices import to_device
from ..measure.own_loss import loss_of
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
