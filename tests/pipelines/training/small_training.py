"""A small network, forty images and the loop with short defaults, for the tests of training."""

import torch
from torch import nn

from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.loop import fit
from decomp.pipelines.training.recipe import Recipe


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * 36, 3),
        )


class Blobs:
    """Forty noisy images of three classes, which differ by where they are bright."""

    def __init__(self, n=40):
        generator = torch.Generator().manual_seed(5)
        self.labels = torch.arange(n) % 3
        self.images = torch.randn(n, 1, 6, 6, generator=generator)
        for number, label in enumerate(self.labels.tolist()):
            self.images[number, 0, 2 * label : 2 * label + 2] += 1.0

    def batches(self, order, batch_size, augment_seed=None):
        images = self.images
        if augment_seed is not None:
            images = images + 0.01 * torch.randn(
                images.shape, generator=torch.Generator().manual_seed(augment_seed % 2**31)
            )
        for indices in order.split(batch_size):
            yield images[indices], self.labels[indices]


def cross_entropy(module, images, labels):
    return nn.functional.cross_entropy(module(images), labels)


def train(net, data=None, recipe=None, **options):
    data = data or Blobs()
    recipe = recipe or Recipe(epochs=3, learning_rate=0.1, batch_size=8)
    options = {"stage": "test", "loss": cross_entropy, **options}
    return fit(net, recipe, n_images=len(data.labels), batches=data.batches, **options)


def validation(data):
    def validate(net):
        with torch.no_grad():
            loss = cross_entropy(net, data.images, data.labels).item()
        return {"score": -loss, "validation_loss": loss}

    return validate


def assert_same(state, other):
    assert state.keys() == other.keys()
    for name in state:
        assert torch.equal(state[name], other[name]), name


class Interrupted(Exception):
    pass


def stop_after(epochs):
    """A hook that ends the process, as it were, when so many epochs are finished and saved."""

    def before_epoch(training):
        if training.epoch == epochs:
            raise Interrupted

    return Hooks(before_epoch=before_epoch)
