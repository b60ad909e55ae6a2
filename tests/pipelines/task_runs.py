"""Runs of tasks, small enough for tests: images of bright halves, a network of two convolutions."""

import numpy as np

from decomp.pipelines.stages import tasks

NETWORK = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 10),
    )

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        return self.head((x + self.conv(x)).relu().mean((2, 3)))

def residual():
    return Residual()

def grouped():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 3))
"""
#: Options that take about a second.
QUICK = {
    "epochs": 3, "prune_epochs": 1, "retrain_epochs": 2, "ladder": (0.3, 0.6), "batch_size": 16, "goal": 0.6,
    "device": "cpu",
}  # fmt: skip


def halves(path, axis, *, noise=0.6, n_classes=2, size=6, channels=1, seed=0, random=False, n_test=40, labels=None):
    """Images with a bright part along an axis, at the place of their class."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 80), ("test", n_test)):
        y = generator.integers(0, n_classes, count)
        x = generator.normal(0, noise, (count, channels, size, size)).astype("float32")
        for image, label in zip(x, y):
            place = np.array_split(np.arange(size), n_classes)[label]
            image[(slice(None), place) if axis == 0 else (slice(None), slice(None), place)] += 1
        if random:
            y = generator.permutation(y)
        if count:
            arrays |= {f"x_{part}": x, f"y_{part}": y if labels is None else labels(y)}
    np.savez(path, **arrays)
    return f"npz:{path}"


def network_file(folder):
    """File of the network factories; returns the name of the chain."""
    (folder / "net.py").write_text(NETWORK)
    return f"{folder}/net.py:build"


def add(run, name, data, **options):
    """Add a task quickly; the first one needs a model."""
    return tasks.add(run, name=name, data=data, **{**QUICK, **options})
