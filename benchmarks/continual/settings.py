"""Tasks, structures and epochs of the comparison, shared by all methods."""

from dataclasses import dataclass

import numpy as np
import torch

from decomp.data import sources

CLASSES = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


@dataclass(frozen=True)
class Setting:
    """What all methods share on one set of images.

    Attributes
    ----------
    model : str
    epochs, prune_epochs, retrain_epochs : int
    batch_size : int
    per_class : int
        Training images of each class; all where there are fewer.
    """

    model: str
    epochs: int
    prune_epochs: int
    retrain_epochs: int
    batch_size: int
    per_class: int
    learning_rate: float = 0.01
    ladder: tuple = (0.3, 0.5, 0.7, 0.8, 0.9)

    def options(self):
        """Options of ``tasks add``."""
        names = ("epochs", "prune_epochs", "retrain_epochs", "batch_size", "learning_rate", "ladder")
        return {name: getattr(self, name) for name in names}


SETTINGS = {
    "digits": Setting("zoo:vgg-digits", 10, 4, 6, 32, 10**6),
    "fashion-mnist": Setting("zoo:vgg-tasks", 6, 4, 6, 64, 1000),
}


def write_tasks(data, folder):
    """Files of the tasks' images, named as sources."""
    folder.mkdir(parents=True, exist_ok=True)
    names, source = [], None
    for classes in CLASSES:
        path = folder / f"{classes[0]}-{classes[1]}.npz"
        if not path.exists():
            source = source or sources.open_source(data)
            np.savez(path, **_arrays(source, classes, SETTINGS[data].per_class))
        names.append(f"npz:{path}")
    return names


def _arrays(source, classes, per_class):
    arrays = {}
    for part, split in (("train", source.train), ("test", source.test)):
        labels = split.labels(torch.arange(len(split)))
        most = per_class if part == "train" else len(split)
        chosen = torch.cat([(labels == number).nonzero().flatten()[:most] for number in classes]).sort().values
        arrays[f"x_{part}"] = split.images(chosen).numpy()
        arrays[f"y_{part}"] = np.searchsorted(classes, labels[chosen].numpy())
    return arrays
