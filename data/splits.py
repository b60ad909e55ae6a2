"""Image source: a training and a test split of normalised images, with or without labels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .transforms import Augmentation, Normalisation, Shape, adapt

Indices = Tensor | Sequence[int]


def as_indices(indices: Indices) -> Tensor:
    """Indices as int64 on the CPU, shape (m,)."""
    return torch.as_tensor(indices, dtype=torch.int64).reshape(-1).cpu()


def batches_of(order: Indices, batch_size: int) -> tuple[Tensor, ...]:
    """Cut ``order`` into batches; no batch where it is empty (torch would give one empty batch)."""
    order = as_indices(order)
    return order.split(batch_size) if len(order) else ()


def numbers_of(order: Indices, batch_size: int, numbers: Tensor | None) -> tuple[Tensor, ...]:
    """Numbers of the images of each batch of `order`, see :meth:`Split.batches`."""
    return batches_of(order if numbers is None else numbers, batch_size)


class Split(ABC):
    """One split of a source: images by index, as a model takes them.

    An index is the position of an image in this split; its augmentation depends on it. Images and labels are on the
    CPU.
    """

    _labels: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def _load(self, indices: Tensor, augment_seed: int | None, numbers: Tensor) -> Tensor:
        """Normalised images, with a seed augmented by the draws of their numbers: float32, shape (m, C, H, W)."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) that identifies the images and labels of this split."""

    @property
    def has_labels(self) -> bool:
        """Whether the images have class numbers."""
        return self._labels is not None

    def images(self, indices: Indices) -> Tensor:
        """Normalised images without augmentation: float32, shape (m, C, H, W), the same on every call."""
        indices = as_indices(indices)
        return self._load(indices, None, indices)

    def labels(self, indices: Indices) -> Tensor | None:
        """Class numbers, int64, shape (m,); None where the split has no labels."""
        return None if self._labels is None else self._labels[as_indices(indices)]

    def batches(
        self, order: Indices, batch_size: int, *, augment_seed: int | None = None, numbers: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Go through the images in ``order``, ``batch_size`` at a time; the last batch may be smaller.

        Parameters
        ----------
        order : Tensor of int64, shape (m,)
            Indices into this split; they may be a subset, and may repeat.
        batch_size : int
        augment_seed : int, optional
            Augment by the source's policy. The random decisions about an image depend on (augment_seed, its number)
            alone, not on its place in a batch: give another seed for each epoch. None: no augmentation.
        numbers : Tensor of int64, shape (m,), optional
            Numbers of the images of `order`, by default their indices. An image that occurs several times is augmented
            otherwise each time if its numbers differ.

        Yields
        ------
        images : Tensor of float32, shape (at most batch_size, C, H, W)
        labels : Tensor of int64, or None
        """
        for indices, own in zip(batches_of(order, batch_size), numbers_of(order, batch_size, numbers)):
            yield self._load(indices, augment_seed, own), self.labels(indices)


class MemorySplit(Split):
    """Split with all pixels in memory.

    Parameters
    ----------
    pixels : Tensor of uint8 or float32, shape (N, C', H', W')
        Before normalisation; black is 0.
    labels : Tensor of int64, shape (N,), or None
    shape : (C, H, W)
        Shape that a model takes; :func:`~decomp.data.transforms.adapt` converts the images.
    normalisation : Normalisation
        Of the channels in ``pixels``.
    augmentation : Augmentation
        Applied to the source's own pixels, before any change of size.
    """

    def __init__(
        self, pixels: Tensor, labels: Tensor | None, shape: Shape, normalisation: Normalisation,
        augmentation: Augmentation,
    ):  # fmt: skip
        self._pixels, self._labels, self._shape = pixels, labels, shape
        self._scale, self._normalisation = normalisation.scale, normalisation.on_channels(shape[0])
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._pixels)

    def _load(self, indices: Tensor, augment_seed: int | None, numbers: Tensor) -> Tensor:
        pixels = self._pixels[indices]
        if augment_seed is not None:
            pixels = self._augmentation(pixels, numbers, augment_seed)
        # `pixels` is a fresh tensor (indexing copies), so what follows may work in place.
        images = adapt(pixels.float().div_(self._scale), self._shape)
        return self._normalisation.shift(images)

    def digest(self) -> str:
        """SHA-256 (hex) over dtype, shape, pixels and labels."""
        sha = hashlib.sha256(f"{self._pixels.dtype} {tuple(self._pixels.shape)}".encode())
        sha.update(self._pixels.reshape(-1).numpy().data)
        if self._labels is not None:
            sha.update(self._labels.reshape(-1).numpy().data)
        return sha.hexdigest()


@dataclass
class ImageSource:
    """Training split and optional test split; calibration images come from the training split alone.

    Attributes
    ----------
    name : str
        As given to :func:`~decomp.data.sources.open_source`.
    input_shape : (C, H, W)
        Shape of one image in the splits.
    n_classes : int or None
        None where no split has labels.
    class_names : sequence of str or None
    train, test : Split, Split or None
    normalisation : Normalisation
        Of the source's own channels.
    augmentation : str
        Description of the policy of ``batches(..., augment_seed=...)``.
    skipped : tuple of str
        Names of the unreadable images that were left out (``skip_bad=True``).
    preprocessing : str
        What is done to the images, in one line.
    prepared : dict or None
        Preparation of pictures as plain data, for opening the source in the same way again.
    labels_ignored : str or None
        Description of labels that are not class numbers, and are ignored.
    """

    name: str
    input_shape: Shape
    n_classes: int | None
    class_names: Sequence[str] | None
    train: Split
    test: Split | None
    normalisation: Normalisation
    augmentation: str = "none"
    skipped: tuple[str, ...] = ()
    preprocessing: str = "as they are"
    prepared: dict[str, Any] | None = None
    labels_ignored: str | None = None
    _digests: dict[str, str | None] = field(default_factory=dict, repr=False)

    def digest(self, split: str = "train") -> str | None:
        """SHA-256 (hex) of a split, ``train`` or ``test``; None where there is no such split."""
        if split not in self._digests:
            images = {"train": self.train, "test": self.test}[split]
            self._digests[split] = None if images is None else images.digest()
        return self._digests[split]

    def describe(self) -> dict[str, Any]:
        """Plain data for run.json: name, counts, shape, preprocessing and the digest of the training split."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "n_train": len(self.train),
            "n_test": None if self.test is None else len(self.test),
            "n_classes": self.n_classes,
            "labelled": self.train.has_labels,
            "normalisation": self.normalisation.describe(),
            "augmentation": self.augmentation,
            "skipped": len(self.skipped),
            "preprocessing": self.preprocessing,
            "prepared": self.prepared,
            "labels_ignored": self.labels_ignored,
            "digest": self.digest("train"),
        }
