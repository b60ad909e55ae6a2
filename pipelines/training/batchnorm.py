"""Batch normalisation and dropout in a network while it is fine-tuned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from decomp import seeds
from decomp.surgery import batchnorm

from ..distributed.process_group import number
from ..distributed.trained_module import take_from_first
from ..measure.devices import to_device
from .loop import Batches
from .recipe import Recipe

#: Batches smaller than this have too noisy statistics for batch normalisation in training.
MIN_BATCH_SIZE = 16
#: Images from which the running statistics are initialised.
STATISTICS_IMAGES = 2000
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def insert_batchnorm(
    network: nn.Module,
    layers: Iterable[str],
    recipe: Recipe,
    n_images: int,
    batches: Batches,
    device: str | torch.device = "cpu",
    at_a_time: int | None = None,
) -> list[str]:
    """Put batch normalisations behind layers, with the statistics of some training images; outputs stay the same.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place and moved to `device`.
    layers : iterable of str
        Module paths: those behind which the original had batch normalisations.
    recipe, n_images, batches, device
        As for :func:`decomp.pipelines.training.loop.fit`.
    at_a_time : int, optional
        Images that memory allows on a forward pass.

    Returns
    -------
    list of str
        Paths for :func:`decomp.surgery.batchnorm.fold_inserted`; empty where the batches are too small.
    """
    size = min(recipe.batch_size, n_images)
    paths = batchnorm.last_convolutions(network, layers)
    if not paths or size < MIN_BATCH_SIZE:
        return []
    size = size if at_a_time is None else min(size, at_a_time)
    order = torch.randperm(n_images, generator=seeds.generator(recipe.seed, "finetune", "statistics"))
    order = order[: max(1, min(STATISTICS_IMAGES, n_images) // size) * size]
    augment_seed = seeds.derive_seed(recipe.seed, "finetune", "statistics")
    target = torch.device(device)
    order = order if number() == 0 else order[:size]  # the others get the statistics of the first process
    images = (to_device(batch, target) for batch, _ in batches(order, size, augment_seed))
    batchnorm.insert_behind(network.to(target), paths, images)
    take_from_first(network)
    return paths


def disable_dropout(network: nn.Module) -> None:
    """Set the probability of every dropout module to 0, in place."""
    for module in network.modules():
        if isinstance(module, DROPOUT):
            module.p = 0.0


def keep_statistics(network: nn.Module) -> None:
    """Let every batch normalisation use its running statistics in training too, and leave them as they are, in place.

    For training without labels: mixtures of images have other statistics than images, and the original, whose outputs
    are the targets, uses its running ones.
    """
    for module in network.modules():
        if isinstance(module, NORMALISATIONS) and module.running_mean is not None:
            module.register_forward_pre_hook(_in_evaluation)


def _in_evaluation(module: nn.Module, inputs: object) -> None:
    module.eval()
