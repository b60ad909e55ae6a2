"""Subject of the comparison: the network and images that every tool is given, and the evaluation of results."""

import copy
import json
import time
from pathlib import Path

import torch

from benchmarks.peers import noise
from decomp.cost.count import cost
from decomp.data import models
from decomp.data.sources import open_source
from decomp.execution.output_change import kl_divergence
from decomp.pipelines.run.calibration import draw_images

N_IMAGES = 5000
AT_A_TIME = 250


class Subject:
    """A network with its calibration images and, to judge by, its test images.

    Attributes
    ----------
    model : torch.nn.Module
        In evaluation mode, its batch normalisations in place. Tools work on copies of it.
    images : torch.Tensor, shape (N, C, H, W)
        As the network takes them: those that `decomp freeze` draws.
    labels : torch.Tensor, shape (N,)
    macs : int
        Multiply-accumulates for one image.
    """

    def __init__(self, network, data, seed, n_images=N_IMAGES):
        loaded = models.load_model(network)
        self.name, self.data, self.seed, self.n_images = network, data, seed, n_images
        self.model = loaded.module
        self.source = open_source(data, input_shape=loaded.input_shape)
        self.shape = self.source.input_shape
        indices = draw_images(self.source, n_images, seed)
        self.images = self.source.train.images(indices)
        self.labels = self.source.train.labels(indices)
        self.macs = self.count(self.model)

    def count(self, module):
        """Multiply-accumulates of a network for one image; the one counter for all tools."""
        return cost(module, self.shape).macs

    def fresh(self):
        """A copy of the network that a tool may spoil."""
        return copy.deepcopy(self.model)

    def judge(self, module, kept):
        """What is measured of a network on the test images.

        Parameters
        ----------
        module : torch.nn.Module
        kept : path
            Where the original's outputs are kept between processes.
        """
        counted = cost(module, self.shape)
        wanted, got = self._reference(Path(kept)), logits_of(module, self.source.test)
        labels = self.source.test.labels(torch.arange(len(self.source.test)))
        right = got.argmax(1) == labels
        return {
            "counted": self.macs / counted.macs, "macs": counted.macs, "params": counted.params,
            "top1": right.double().mean().item(),
            "original_top1": (wanted.argmax(1) == labels).double().mean().item(),
            "agreement": (got.argmax(1) == wanted.argmax(1)).double().mean().item(),
            "kl": kl_divergence(wanted, got).mean().item(), "right": noise.packed(right),
        }  # fmt: skip

    def _reference(self, kept):
        if not kept.exists():
            part = kept.with_suffix(".part")
            torch.save(logits_of(self.model, self.source.test), part)
            part.rename(kept)
        return torch.load(kept, weights_only=True)


@torch.no_grad()
def logits_of(module, split):
    """Outputs for all images of a split."""
    module.eval()
    indices = torch.arange(len(split))
    return torch.cat([module(split.images(part)) for part in indices.split(AT_A_TIME)])


@torch.no_grad()
def reestimate_normalisation(module, images):
    """Statistics of all batch normalisations anew, as means over these images; everything else stays.

    Dropout is off, so that the statistics are those of the network as it runs afterwards.
    """
    found = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in found]
    module.eval()
    for layer in found:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    for part in images.split(AT_A_TIME):
        module(part)
    for layer, momentum in zip(found, before):
        layer.momentum = momentum
    return module.eval()


def once(folder, name, make):
    """Prepare something that several rows share; returns the seconds that it took an earlier process.

    ``make()`` leaves its result under `folder`; a JSON file there says that it is whole. Made now, it returns 0: the
    time runs on the clock of the row that makes it.
    """
    note = Path(folder) / f"{name}.json"
    if note.exists():
        return json.loads(note.read_text())["seconds"]
    start = time.monotonic()
    make()
    note.write_text(json.dumps({"seconds": round(time.monotonic() - start, 1)}))
    return 0.0
