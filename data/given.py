"""Image source from a tensor, an array or an iterable of batches in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from decomp.errors import NumericalError, UsageError, kind_of
from decomp.graph.ways_out import part_that_works

from .image_options import IN_MEMORY
from .items import as_tensor, channels_first, class_number, images_of, labels_of, leaves
from .models import parse_input_size
from .splits import ImageSource, MemorySplit
from .transforms import Augmentation, Normalisation, Shape, check_shape

NAME = IN_MEMORY


def source_of(
    images: Any, most: int, *, input_size: Any = None, skip_bad: bool = False, seed: int = 0,
    network: nn.Module | None = None,
) -> ImageSource:  # fmt: skip
    """Make a source whose training split holds the given images, with labels where each has a class number.

    Parameters
    ----------
    images : Tensor or ndarray of shape (N, C, H, W), a Dataset, or an iterable of batches or of single images
        As the network takes them: floating point, normalised. A batch is such a tensor, or a tuple, list or dict with
        one in it, as a DataLoader gives it, labels beside the images or not; one such tuple or dict alone is a batch.
        An item of a Dataset, and a single image (1 or 3 channels in front or behind) of an iterable, is the same
        without the first axis.
    most : int
        Batches of an iterable are read until there are this many images; of a Dataset so many are drawn. All images
        of a tensor are taken.
    input_size : str or sequence of int, optional
        As for :func:`decomp.data.models.parse_input_size`; the images are resized to it.
    skip_bad : bool
        Leave out images with NaN or infinite values.
    seed : int
        Of the order in which images of a Dataset are drawn.
    network : torch.nn.Module, optional
        For advice in messages.

    Raises
    ------
    UsageError
        The images are of another type or shape.
    NumericalError
        NaN or infinite values.
    """
    pixels, labels = gather(images, most, seed, network)
    bad = (~torch.isfinite(pixels)).flatten(1).any(1)
    n_bad = int(bad.sum())
    places = bad.nonzero().flatten().tolist()
    if n_bad and not skip_bad:
        which = ", ".join(map(str, places[:5])) + (", ..." if n_bad > 5 else "")
        got = f"NaN or infinite values in {n_bad} of {len(pixels)} images ({which})"
        fix = "correct them, or leave them out with --skip-bad"
        raise NumericalError(NAME, "every value must be finite", got=got, fix=fix)
    pixels, labels = pixels[~bad] if n_bad else pixels, None if labels is None else labels[~bad]
    channels, height, width = pixels.shape[1:]
    shape: Shape = (channels, height, width)
    if input_size is not None:
        wanted = parse_input_size(input_size)
        shape = check_shape(NAME, shape, (wanted[0] or channels, *wanted[1:]))
    identity, skipped = Normalisation(1.0), tuple(f"image {place}" for place in places)
    split = MemorySplit(pixels, labels, shape, identity, Augmentation())
    n_classes = None if labels is None else int(labels.max()) + 1
    return ImageSource(NAME, shape, n_classes, None, train=split, test=None, normalisation=identity, skipped=skipped)


def gather(images: Any, most: int, seed: int = 0, network: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
    """The images as one float32 tensor (N, C, H, W) on the CPU, and their class numbers (N,) where all have one."""
    if isinstance(images, (Tensor, np.ndarray)):
        return _checked(images, network), None
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        images = _drawn(images, most, seed)
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        rule = "must be a tensor or array of shape (N, C, H, W), a Dataset, or give batches of such"
        fix = "give what it returns" if callable(images) else "open images by name with decomp.freeze"
        raise UsageError("images", rule, got=kind_of(images), fix=fix)
    parts, count, labels = [], 0, []
    for batch in [images] if _is_batch(images) else images:
        single = _single_image(batch)
        name, pixels = images_of(batch, 4, "images") if single is None else single
        parts.append(_checked(pixels, network))
        beside = labels_of(batch, name)
        labels.append(_class_numbers([beside] if single is not None else beside, len(parts[-1])))
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


def _is_batch(images: Any) -> bool:
    """Whether this is one batch itself: a dict, or images and what belongs to them."""
    if isinstance(images, Mapping):
        return True
    pair = isinstance(images, (tuple, list)) and len(images) == 2
    return pair and _axes(images[0]) == 4 and _axes(images[1]) in (1, 2)


def _single_image(batch: Any) -> tuple[str, Tensor] | None:
    """Name and pixels (1, C, H, W) of an image that is given without the first axis; None for a batch."""
    found = list(leaves(batch))
    single = [name for name, value in found if _axes(value) == 3 and ({value.shape[0], value.shape[2]} & {1, 3})]
    if not single or any(_axes(value) == 4 for _, value in found):
        return None
    name, image = images_of(batch, 3, "images")
    return name, channels_first(as_tensor(image))[None]


def _axes(value: Any) -> int | None:
    return value.ndim if isinstance(value, (Tensor, np.ndarray)) else None


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
            got = kind_of(image)
            raise UsageError("images", "an item of a Dataset must have an image tensor (C, H, W)", got=got, fix=fix)
        yield channels_first(as_tensor(image))[None], [labels_of(item, name)]


def _checked(images: Any, network: nn.Module | None = None) -> Tensor:
    if isinstance(images, Image.Image):
        fix = "make tensors of them with the transform of the network's training"
        raise UsageError("images", "must be tensors or arrays", got=kind_of(images), fix=fix)
    try:
        pixels = torch.as_tensor(images).detach().cpu()
    except TypeError as error:  # an array of texts or objects
        raise UsageError("images", "must be an array of numbers", got=f"one of {images.dtype}") from error
    if pixels.dim() != 4:
        fix = _way_to_four(pixels, network)
        raise UsageError("images", "must be of shape (N, C, H, W)", got=tuple(pixels.shape), fix=fix)
    if not pixels.is_floating_point():
        fix = (
            "divide and normalise them as for the network's training, such as (images / 255 - mean) / std, or give "
            "images.float() where the network does that"
        )
        raise UsageError("images", "must be floating point, as the network takes them", got=pixels.dtype, fix=fix)
    return pixels.float().contiguous()


def _way_to_four(pixels: Tensor, network: nn.Module | None) -> str:
    if pixels.dim() == 5:
        part = None if network is None else part_that_works(network, pixels.shape[2:])
        if part is not None:
            frames = "give the frames as images, images.flatten(0, 1)"
            return f"{frames}, and treat the part that reads them, module='{part}'"
        return "networks on volumes are not treated; give single images to a network that takes them"
    if pixels.dim() > 4:
        return "give single images"
    if pixels.dim() == 3:
        return "add the missing axis: images[:, None] for N grey images, images[None] for one image"
    return "give the images as a tensor with the axes images, channels, height, width"
