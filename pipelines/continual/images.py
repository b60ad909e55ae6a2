"""Images of one task: opened, checked against the network of the run, and split for training and validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decomp.errors import UsageError

from ...data.sources import open_source
from ...data.splits import ImageSource, Split
from ..console.words import counted
from ..measure.accuracy import accuracy
from ..training.hold_out import hold_out

#: Share of the training images that every decision about a task is based on; the network is not trained on them.
HELD_OUT = 0.2
#: Images on which a task is verified later, and the bytes that they may take in its file.
PROBE_IMAGES, PROBE_BYTES = 64, 4 * 2**20
#: Training images that a task needs at least, and held-out ones below which a warning is given.
LEAST_IMAGES, FEW_HELD_OUT = 10, 20


@dataclass(frozen=True, eq=False)
class TaskImages:
    """Images of a task.

    Attributes
    ----------
    source : ImageSource
    n_classes : int
    train, held_out : torch.LongTensor
        Images of the training split that are trained on, and those validated on.
    """

    source: ImageSource
    n_classes: int
    train: Tensor
    held_out: Tensor

    def batches(self, order: Tensor, batch_size: int, augment_seed: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As the training loop asks for them."""
        return self.source.train.batches(self.train[order], batch_size, augment_seed=augment_seed)

    def validation(self, module: nn.Module, device: torch.device) -> float:
        """Accuracy on the held-out images."""
        return accuracy(module, self.source.train, self.held_out, device)

    def training(self, module: nn.Module, device: torch.device) -> float:
        """Accuracy on the images trained on, without augmentation."""
        return accuracy(module, self.source.train, self.train, device)

    def test(self, module: nn.Module, device: torch.device) -> float | None:
        """Accuracy on the test images; None where there are none."""
        return test_accuracy(self.source, module, device)

    def probe(self) -> tuple[Tensor, Tensor]:
        """Some held-out images and their labels."""
        size = 4 * torch.Size(self.source.input_shape).numel()
        chosen = self.held_out[: max(1, min(PROBE_IMAGES, PROBE_BYTES // size))]
        labels = self.source.train.labels(chosen)
        assert labels is not None
        return self.source.train.images(chosen), labels

    def warnings(self) -> list[str]:
        """Sentences about images that are too few to learn from, or to decide about the task."""
        n_held_out, n_images, said = len(self.held_out), len(self.source.train), []
        if n_held_out < FEW_HELD_OUT:
            images = f"{counted(n_held_out, 'image')} held out of {n_images}"
            said.append(f"only {images} to decide about the goal: each is {100 / n_held_out:.0f} points of accuracy")
        labels = _labels(self.source.train)
        untrained = sorted(set(labels[self.held_out].tolist()) - set(labels[self.train].tolist()))
        for number in untrained:
            said.append(f"all images of class {number} are held out, none is trained on; give more of them")
        return said


def test_accuracy(source: ImageSource, module: nn.Module, device: torch.device) -> float | None:
    """Accuracy on a source's test images; None where there are none with labels."""
    if source.test is None or not source.test.has_labels:
        return None
    return accuracy(module, source.test, torch.arange(len(source.test)), device)


def open_images(data: str | ImageSource, shape: Sequence[int] | None = None) -> ImageSource:
    """The source of a task's images.

    Parameters
    ----------
    data : str or ImageSource
    shape : (C, H, W), optional
        That the network of the run takes. Image files are brought to it; arrays must have it.

    Raises
    ------
    UsageError
        The images are of another size, or have another number of channels.
    """
    if isinstance(data, ImageSource):
        source = data
    elif shape is not None and data.startswith("imagefolder:"):
        source = open_source(data, input_shape=shape)
    else:
        source = open_source(data)
    if shape is not None and tuple(source.input_shape) != tuple(shape):
        words = ["x".join(map(str, size)) for size in (shape, source.input_shape)]
        fix = "prepare the images in that form, or learn them in another run"
        raise UsageError(source.name, f"the network of the run takes images of {words[0]}", got=words[1], fix=fix)
    return source


def task_images(source: ImageSource, seed: int, classes: int | None = None) -> TaskImages:
    """Check the labels of a source and hold images out.

    Parameters
    ----------
    source : ImageSource
    seed : int
    classes : int, optional
        Number of classes; where not given, all from 0 to the largest label.

    Raises
    ------
    UsageError
        Images without labels, labels that are not 0..n−1, or fewer than ten training images.
    """
    if not source.train.has_labels:
        got = source.labels_ignored or "images without labels"
        raise UsageError(source.name, "a task needs a label for every training image", got=got, fix="number the "
                         "classes from 0 in whole numbers")  # fmt: skip
    if len(source.train) < LEAST_IMAGES:
        rule = f"a task needs at least {LEAST_IMAGES} training images, of which a fifth is held out to decide about it"
        raise UsageError(source.name, rule, got=len(source.train), fix="give more images")
    labels = _labels(source.train)
    n_classes = classes or max(source.n_classes or 0, int(labels.max()) + 1)
    if n_classes < 2:
        fix = "give images of at least two classes, numbered from 0"
        raise UsageError(source.name, "a task needs images of two classes or more", got=f"{n_classes} class", fix=fix)
    for part, found in (("training", labels), ("test", _labels(source.test))):
        outside = found[(found < 0) | (found >= n_classes)]
        if len(outside):
            rule = f"labels of the {part} images must be in 0..{n_classes - 1}"
            raise UsageError(source.name, rule, got=int(outside[0]), fix="number the classes from 0")
    missing = [number for number in range(n_classes) if not bool((labels == number).any())]
    if missing and classes is None:
        rule = f"classes must be numbered 0..{n_classes - 1} with images of each"
        fix = "number the classes from 0"
        if 0 not in missing:
            fix += f" without a gap, or say that there are {n_classes} (option classes)"
        raise UsageError(source.name, rule, got=f"no training image of class {missing[0]}", fix=fix)
    train, held_out = hold_out(len(source.train), seed, fraction=HELD_OUT)
    return TaskImages(source, n_classes, train, held_out)


def _labels(split: Split | None) -> Tensor:
    labels = None if split is None else split.labels(torch.arange(len(split)))
    return torch.empty(0, dtype=torch.int64) if labels is None else labels
