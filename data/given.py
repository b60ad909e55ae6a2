"""Image source from a tensor, an array or an iterable of batches in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from decomp.errors import NumericalError, UsageError

from .items import as_tensor, channels_first, class_number, images_of, labels_of
from .models import parse_input_size
from .splits import ImageSource, MemorySplit
from .transforms import Augmentation, Normalisation, Shape, check_shape

NAME = "images in memory"


def source_of(images: Any, most: int, *, input_size: Any = None, skip_bad: bool = False, seed: int = 0) -> ImageSource:
    """Make a source whose training split holds the given images, with labels where each has a class number.

    Parameters
    ----------
    images : Tensor or ndarray of shape (N, C, H, W), a Dataset, or an iterable of batches
        As the network takes them: floating point, normalised. A batch is such a tensor, or a tuple, list or dict with
        one in it, as a DataLoader gives it, labels beside the images or not. An item of a Dataset is the same without
        the first axis.
    most : int
        Batches of an iterable are read until there are this many images; of a Dataset so many are drawn. All images
        of a tensor are taken.
    input_size : str or sequence of int, optional
        As for :func:`decomp.data.models.parse_input_size`; the images are resized to it.
    skip_bad : bool
        Leave out images with NaN or infinite values.
    seed : int
        Of the order in which images of a Dataset are drawn.

    Raises
    ------
    UsageError
        The images are of another type or shape.
    NumericalError
        NaN or infinite values.
    """
    pixels, labels = gather(images, most, seed)
    bad = (~torch.isfinite(pixels)).flatten(1).any(1)
    n_bad = int(bad.sum())
    if n_bad and not skip_bad:
        got, fix = f"{n_bad} images with NaN or infinite values", "correct them, or leave them out with --skip-bad"
        raise NumericalError(NAME, "every value must be finite", got=got, fix=fix)
    pixels, labels = pixels[~bad] if n_bad else pixels, None if labels is None else labels[~bad]
    channels, height, width = pixels.shape[1:]
    shape: Shape = (channels, height, width)
    if input_size is not None:
        wanted = parse_input_size(input_size)
        shape = check_shape(NAME, shape, (wanted[0] or channels, *wanted[1:]))
    identity = Normalisation(1.0)
    split = MemorySplit(pixels, labels, shape, identity, Augmentation())
    n_classes = None if labels is None else int(labels.max()) + 1
    return ImageSource(NAME, shape, n_classes, None, train=split, test=None, normalisation=identity, skipped=n_bad)


def gather(images: Any, most: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """The images as one float32 tensor (N, C, H, W) on the CPU, and their class numbers (N,) where all have one."""
    if isinstance(images, (Tensor, np.ndarray)):
        return _checked(images), None
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        images = _drawn(images, most, seed)
    if isinstance(images, (str, bytes, dict)) or not isinstance(images, Iterable):
        rule = "must be a tensor or array of shape (N, C, H, W), a Dataset, or give batches of such"
        raise UsageError("images", rule, got=f"a {type(images).__name__}", fix="open images by name with decomp.freeze")
    parts, count, labels = [], 0, []
    for batch in images:
        name, pixels = images_of(batch, 4, "images")
        parts.append(_checked(pixels))
        labels.append(_class_numbers(labels_of(batch, name), len(parts[-1])))
        count += len(parts[-1])
        if count >= most:
            break
    if not parts:
        raise UsageError("images", "there must be at least one batch", got="none")
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        fix = "resize or crop them to one size first"
        raise UsageError("images", "must all be of one shape", got=" and ".join(map(str, shapes[:3])), fix=fix)
    known = [part for part in labels if part is not None]
    return torch.cat(parts)[:most], torch.cat(known)[:most] if len(known) == len(parts) else None


def _class_numbers(labels: Any, n: int) -> Tensor | None:
    """Labels of a batch as class numbers (n,), int64; None where they are something else."""
    if isinstance(labels, (Tensor, np.ndarray)):
        labels = [] if labels.ndim != 1 else list(labels)
    numbers = [class_number(label) for label in labels] if isinstance(labels, (list, tuple)) else []
    known = [number for number in numbers if number is not None]
    return torch.tensor(known) if len(known) == len(numbers) == n else None


def _drawn(dataset: Dataset[Any], most: int, seed: int) -> Iterator[tuple[Tensor, list[Any]]]:
    """Images of a Dataset in random order, each as a batch of one, with what is beside it."""
    size = len(dataset)  # type: ignore[arg-type]
    for index in torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:most].tolist():
        item = dataset[index]
        name, image = images_of(item, 3, "images")
        if not isinstance(image, (Tensor, np.ndarray)):
            fix = "give the Dataset the transform of the network's training, which ends in a tensor"
            got = f"a {type(image).__name__}"
            raise UsageError("images", "an item of a Dataset must have an image tensor (C, H, W)", got=got, fix=fix)
        yield channels_first(as_tensor(image))[None], [labels_of(item, name)]


def _checked(images: Any) -> Tensor:
    try:
        pixels = torch.as_tensor(images).detach().cpu()
    except TypeError as error:  # an array of texts or objects
        raise UsageError("images", "must be an array of numbers", got=f"one of {images.dtype}") from error
    if pixels.dim() != 4:
        raise UsageError("images", "must be of shape (N, C, H, W)", got=tuple(pixels.shape), fix=_way_to_four(pixels))
    if not pixels.is_floating_point():
        fix = "divide and normalise them as for the network's training"
        raise UsageError("images", "must be floating point, as the network takes them", got=pixels.dtype, fix=fix)
    return pixels.float().contiguous()


def _way_to_four(pixels: Tensor) -> str:
    if pixels.dim() > 4:
        return "networks on volumes and videos are not treated; give single images, such as images.flatten(0, 1)"
    if pixels.dim() == 3:
        return "add the missing axis: images[:, None] for N grey images, images[None] for one image"
    return "give the images as a tensor with the axes images, channels, height, width"
