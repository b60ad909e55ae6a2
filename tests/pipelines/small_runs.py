"""A run directory as freeze and decompose leave it, with networks small enough to be trained within a test."""

import copy

import torch
from torch import fx, nn

from decomp.data.formats import network_file
from decomp.data.formats.digests import digest_file
from decomp.data.formats.frozen_file import FrozenWriter
from decomp.data.sources import open_source
from decomp.pipelines.console.options import FreezeOptions
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.training.hold_out import hold_out
from decomp.pipelines.training.loop import fit
from decomp.pipelines.training.recipe import Recipe

SHAPE = (1, 8, 8)


def network(width, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3)]
        layers += [nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(2 * width * 4, 10)]
        return fx.symbolic_trace(nn.Sequential(*layers).eval())


def trained():
    source = open_source("digits")
    kept, _ = hold_out(len(source.train), 0)
    module = network(8, 0)
    fit(
        module,
        Recipe(epochs=6, learning_rate=0.1, batch_size=64),
        stage="test",
        n_images=len(kept),
        batches=lambda order, size, augment: source.train.batches(kept[order], size, augment_seed=augment),
        loss=lambda net, images, labels: nn.functional.cross_entropy(net(images), labels),
    )
    return module


def disturbed(module):
    """A copy that answers worse, as a decomposed network does: each weight is off by about a third."""
    generator = torch.Generator().manual_seed(2)
    module = copy.deepcopy(module)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1 + 0.4 * torch.randn(weight.shape, generator=generator))
    return module


def make_run(path, n_images=300):
    """A run on the digits with a trained original network and a disturbed copy of it as the decomposed one."""
    run = RunDirectory.create(path)
    original = trained()
    network_file.save(original, run.original_dir, input_shape=SHAPE, meta={"model": "test"})
    network_file.save(
        disturbed(original), run.model_dir, edited=["0", "3", "7"], input_shape=SHAPE, meta={"plan": "test"}
    )
    source = open_source("digits")
    outputs = [{"name": "output", "kind": "scores", "shape": [10], "reason": "as asked"}]
    meta = {
        "network": digest_file(run.original_dir / "structure.json"), "input_shape": list(SHAPE), "outputs": outputs,
    }  # fmt: skip
    with FrozenWriter(run.frozen, meta=meta, n_images=n_images, input_shape=SHAPE) as writer:
        writer.write_images(0, source.train.images(torch.arange(n_images)))
    asked = FreezeOptions(model="test", data="digits").to_json()
    run.update_config("freeze", {"asked": asked, "facts": {}, "outputs": outputs})
    return run


def quiet():
    return Reporter(quiet=True)


class Watched:
    """A split that notes which of its images are read, or refuses to be read at all."""

    def __init__(self, split, forbidden=False, labels=True):
        self.split, self.forbidden, self.labelled, self.seen = split, forbidden, labels, set()

    def __len__(self):
        return len(self.split)

    @property
    def has_labels(self):
        return self.labelled

    def digest(self):
        return self.split.digest()

    def batches(self, order, batch_size, *, augment_seed=None, numbers=None):
        assert not self.forbidden, "this split must not be read"
        self.seen.update((augment_seed is not None, index) for index in order.tolist())
        for images, labels in self.split.batches(order, batch_size, augment_seed=augment_seed, numbers=numbers):
            yield images, labels if self.labelled else None

    images = labels = None
