"""Split of the training images: those that were frozen, and among these the fitted and the held-out ones."""

from __future__ import annotations

import torch
from torch import Tensor

from decomp import seeds
from decomp.errors import UsageError

from ...data.splits import ImageSource
from ..console.options import LEAST_IMAGES

#: One frozen image in so many is left out of every fit and of every tuning without labels.
HELD_OUT = 10


def fitted_images(n_images: int) -> int:
    """How many of `n_images` frozen images the fits use, the first ones; those behind them are held out.

    Everything that judges a network by frozen images takes the held-out ones alone.
    """
    return n_images - max(1, n_images // HELD_OUT)


def draw_images(source: ImageSource, n_images: int, seed: int, *, least: int = LEAST_IMAGES) -> Tensor:
    """Draw the calibration images.

    Parameters
    ----------
    source : ImageSource
    n_images : int
        At most. A larger number draws the same images, and more behind them.
    seed : int
    least : int
        Fewest images that are enough.

    Returns
    -------
    torch.LongTensor
        Indices of training images, in random order.

    Raises
    ------
    UsageError
        There are fewer.
    """
    available = len(source.train)
    if available < least:
        rule, fix = f"at least {least} training images are needed", "give more; a few thousand are usual"
        raise UsageError(source.name, rule, got=available, fix=fix)
    order = torch.randperm(available, generator=seeds.generator(seed, "freeze", "images"))
    return order[: min(n_images, available)]
