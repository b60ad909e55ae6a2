"""Short training with one recipe for all networks, that of `decomp finetune`: same images, same order, same rates."""

import torch
from torch.nn import functional

from decomp.pipelines import training
from decomp.pipelines.finetune import CLIP_NORM, WARMUP_EPOCHS


def recipe(epochs, seed):
    """The recipe with its defaults."""
    return training.Recipe(
        epochs=epochs, learning_rate=0.01, warmup_epochs=WARMUP_EPOCHS, clip_norm=CLIP_NORM, seed=seed
    )


def tune(network, subject, epochs):
    """Train with labels; the network after the last epoch is returned, so that nothing is chosen."""
    train, _ = training.hold_out(len(subject.source.train), subject.seed)

    def batches(order, batch_size, augment_seed):
        return subject.source.train.batches(train[order], batch_size, augment_seed=augment_seed)

    def loss(module, images, labels):
        return functional.cross_entropy(module(images), labels)

    for parameter in network.parameters():
        parameter.requires_grad_(True)
    training.fit(
        network, recipe(epochs, subject.seed), stage="finetune", n_images=len(train), batches=batches, loss=loss,
        device=torch.device("cpu"),
    )  # fmt: skip
    return network.eval()
