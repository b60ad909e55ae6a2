"""Seeded split of training images into those trained on and those held out for validation."""

from __future__ import annotations

import torch

from decomp import seeds
from decomp.errors import UsageError


def hold_out(
    n_images: int, seed: int, *, fraction: float = 0.1, at_most: int = 5000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the numbers of the training images in two.

    The draw depends on `seed` and `n_images` alone, not on the caller: a network that was trained with a seed and is
    fine-tuned with the same seed is validated on images that neither training used.

    Returns
    -------
    train, validation : LongTensor
        Disjoint sorted indices; together ``0..n_images-1``. `validation` has ``min(at_most, fraction * n_images)``
        entries, at least 1.
    """
    if n_images < 2:
        raise UsageError("training images", "at least 2 are needed, one to train on and one to validate", got=n_images)
    n_validation = max(1, min(at_most, int(fraction * n_images)))
    order = torch.randperm(n_images, generator=seeds.generator(seed, "hold-out", n_images))
    return order[n_validation:].sort().values, order[:n_validation].sort().values
