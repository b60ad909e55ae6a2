"""Short training with one recipe for all networks, that of `decomp finetune`: same images, same order, same rates."""

import torch
from torch.nn import functional

from decomp import seeds
from decomp.graph.tracing import trace
from decomp.pipelines.stages.finetune import CLIP_NORM, WARMUP_EPOCHS
from decomp.pipelines.training.batchnorm import insert_batchnorm
from decomp.pipelines.training.hold_out import hold_out
from decomp.pipelines.training.loop import fit
from decomp.pipelines.training.recipe import Recipe
from decomp.surgery import batchnorm
from decomp.surgery.batchnorm import fold_bn


def recipe(epochs, seed):
    """The recipe with its defaults."""
    return Recipe(epochs=epochs, learning_rate=0.01, warmup_epochs=WARMUP_EPOCHS, clip_norm=CLIP_NORM, seed=seed)


def tune(network, subject, epochs, folded=False, n_images=None):
    """Train with labels; the network after the last epoch is returned, so that nothing is chosen.

    The normalisations of other tools' networks are in place. Where the tool has folded them, they stand behind the
    layers again meanwhile, put there and folded as `decomp finetune` does. With `n_images`, that many of the images
    are trained on, drawn by the seed: the same ones for all methods.
    """
    train, _ = hold_out(len(subject.source.train), subject.seed)
    if n_images is not None:
        train = train[torch.randperm(len(train), generator=seeds.generator(subject.seed, "part"))[:n_images]]

    def batches(order, batch_size, augment_seed):
        return subject.source.train.batches(train[order], batch_size, augment_seed=augment_seed)

    def loss(module, images, labels):
        return functional.cross_entropy(module(images), labels)

    for parameter in network.parameters():
        parameter.requires_grad_(True)
    settings, count = recipe(epochs, subject.seed), len(train)
    layers = [layer for layer, _ in fold_bn(trace(subject.fresh()))] if folded else []
    paths = insert_batchnorm(network, layers, settings, count, batches)
    fit(
        network, settings, stage="finetune", n_images=count, batches=batches, loss=loss,
        device=torch.device("cpu"),
    )  # fmt: skip
    batchnorm.fold_inserted(network, paths)
    return network.eval()
