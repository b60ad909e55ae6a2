"""Batch normalisation and dropout for fine-tuning."""

import torch
from torch import nn

from decomp import seeds
from decomp.surgery import batchnorm as refold

from ..measure import devices

#: Batches smaller than this have too noisy statistics for normalisations in training.
LEAST_BATCH = 16


#: Images over which the statistics that these begin with are taken.
STATISTICS_IMAGES = 2000


DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def normalise(network, layers, recipe, n_images, batches, device="cpu"):
    """Put batch normalisations behind layers for a training, with the statistics of some of its images.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place and moved to `device`.
    layers : iterable of str
        Module paths: those behind which the original had normalisations.
    recipe, n_images, batches, device
        As for :func:`decomp.pipelines.training.loop.fit`.

    Returns
    -------
    list of str
        What :func:`decomp.surgery.batchnorm.fold` needs; empty where the batches are too small.
    """
    size = min(recipe.batch_size, n_images)
    paths = refold.last_convolutions(network, layers)
    if not paths or size < LEAST_BATCH:
        return []
    order = torch.randperm(n_images, generator=seeds.generator(recipe.seed, "finetune", "statistics"))
    order = order[: max(1, min(STATISTICS_IMAGES, n_images) // size) * size]
    augment_seed = seeds.derive_seed(recipe.seed, "finetune", "statistics")
    images = (devices.to_device(batch, device) for batch, _ in batches(order, size, augment_seed))
    refold.put_behind(network.to(device), paths, images)
    return paths


def without_dropout(network):
    """Switch off every dropout module in place, also for training mode."""
    for module in network.modules():
        if isinstance(module, DROPOUT):
            module.p = 0.0
