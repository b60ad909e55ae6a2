"""What a source of images is to everyone else: two splits of normalised images with or without labels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .transforms import Augmentation, Normalisation, adapt


def as_indices(indices) -> Tensor:
    """Indices of any kind as int64 on the CPU, shape (m,)."""
    return torch.as_tensor(indices, dtype=torch.int64).reshape(-1).cpu()


def batches_of(order, batch_size: int) -> tuple[Tensor, ...]:
    """``order`` cut into batches; none at all where it is empty (torch would give one empty batch)."""
    order = as_indices(order)
    return order.split(batch_size) if len(order) else ()


class Split(ABC):
    """One split of a source: images by index, as a model takes them.

    An index is the image's place in this split, and what its augmentation is drawn from. Images and labels are on the
    CPU.
    """

    _labels: Tensor | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _load(self, indices: Tensor, augment_seed: int | None) -> Tensor: ...

    @abstractmethod
    def digest(self) -> str:
        """Sha256 (hex) that tells this split's images from another's."""

    @property
    def has_labels(self) -> bool:
        return self._labels is not None

    def images(self, indices) -> Tensor:
        """Normalised images without augmentation: float32, shape (m, C, H, W), the same on every call."""
        return self._load(as_indices(indices), None)

    def labels(self, indices) -> Tensor | None:
        """Class numbers, int64, shape (m,); None where the split has no labels."""
        return None if self._labels is None else self._labels[as_indices(indices)]

    def batches(
        self, order, batch_size: int, *, augment_seed: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Go through the images in ``order``, ``batch_size`` at a time; the last batch may be smaller.

        Parameters
        ----------
        order : Tensor of int64, shape (m,)
            Indices into this split, in the order wanted; they may be a part of the split, or repeat.
        batch_size : int
        augment_seed : int, optional
            Augment by the source's policy. What happens to an image is drawn from (augment_seed, its index) alone,
            never from its place in a batch: give another seed for each epoch. None: no augmentation.

        Yields
        ------
        images : Tensor of float32, shape (at most batch_size, C, H, W)
        labels : Tensor of int64, or None
        """
        for indices in batches_of(order, batch_size):
            yield self._load(indices, augment_seed), self.labels(indices)


class MemorySplit(Split):
    """A split whose pixels are held in memory.

    Parameters
    ----------
    pixels : Tensor of uint8 or float32, shape (N, C', H', W')
        As the source has them; black is 0.
    labels : Tensor of int64, shape (N,), or None
    shape : (C, H, W)
        What a model takes; reached by :func:`~decomp.data.transforms.adapt`.
    normalisation : Normalisation
        Of the source's own channels.
    augmentation : Augmentation
        Applied to the source's own pixels, before any change of size.
    """

    def __init__(self, pixels, labels, shape, normalisation: Normalisation, augmentation: Augmentation):
        self._pixels, self._labels, self._shape = pixels, labels, tuple(shape)
        self._scale, self._normalisation = normalisation.scale, normalisation.on_channels(shape[0])
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._pixels)

    def _load(self, indices: Tensor, augment_seed: int | None) -> Tensor:
        pixels = self._pixels[indices]
        if augment_seed is not None:
            pixels = self._augmentation(pixels, indices, augment_seed)
        # `pixels` is a fresh tensor (indexing copies), so what follows may work in place.
        images = adapt(pixels.float().div_(self._scale), self._shape)
        return self._normalisation.shift(images)

    def digest(self) -> str:
        sha = hashlib.sha256(f"{self._pixels.dtype} {tuple(self._pixels.shape)}".encode())
        sha.update(self._pixels.reshape(-1).numpy())
        if self._labels is not None:
            sha.update(self._labels.reshape(-1).numpy())
        return sha.hexdigest()


@dataclass
class ImageSource:
    """Images by name: a training split, the only place calibration images may come from, and perhaps a test split.

    Attributes
    ----------
    name : str
        As given to :func:`~decomp.data.sources.open_source`.
    input_shape : (C, H, W)
        Shape of one image as the splits give it.
    n_classes : int or None
        None where nothing is labelled.
    class_names : sequence of str or None
    train, test : Split, Split or None
    normalisation : Normalisation
        Of the source's own channels.
    augmentation : str
        The policy that ``batches(..., augment_seed=...)`` follows, in words.
    skipped : int
        Unreadable images left out (``skip_bad=True``).
    """

    name: str
    input_shape: tuple[int, int, int]
    n_classes: int | None
    class_names: Sequence[str] | None
    train: Split
    test: Split | None
    normalisation: Normalisation
    augmentation: str = "none"
    skipped: int = 0
    _digests: dict = field(default_factory=dict, repr=False)

    def digest(self, split: str = "train") -> str | None:
        """Sha256 (hex) of what a split holds; None where there is no such split."""
        if split not in self._digests:
            images = {"train": self.train, "test": self.test}[split]
            self._digests[split] = None if images is None else images.digest()
        return self._digests[split]

    def describe(self) -> dict:
        """Plain values for run.json: name, counts, shape, preprocessing and the training split's digest."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "n_train": len(self.train),
            "n_test": None if self.test is None else len(self.test),
            "n_classes": self.n_classes,
            "labelled": self.train.has_labels,
            "normalisation": self.normalisation.describe(),
            "augmentation": self.augmentation,
            "skipped": self.skipped,
            "digest": self.digest("train"),
        }
