"""Image source from a tensor, an array or an iterable of batches in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decomp.errors import NumericalError, UsageError

from .splits import ImageSource, MemorySplit
from .transforms import Augmentation, Normalisation

NAME = "images in memory"


def source_of(images: Tensor | np.ndarray | Iterable[Any], most: int) -> ImageSource:
    """Make a source whose training split holds the given images, without labels.

    Parameters
    ----------
    images : Tensor or ndarray of shape (N, C, H, W), or an iterable of batches
        As the network takes them: floating point, normalised. A batch is such a tensor, or a tuple, list or dict whose
        first entry is one (as a DataLoader gives it; labels are ignored).
    most : int
        Batches of an iterable are read until there are this many images. All images of a tensor are taken.

    Raises
    ------
    UsageError
        The images are of another type or shape.
    NumericalError
        NaN or infinite values.
    """
    pixels = gather(images, most)
    bad = int((~torch.isfinite(pixels)).flatten(1).any(1).sum())
    if bad:
        raise NumericalError(NAME, "every value must be finite", got=f"{bad} images with NaN or infinite values")
    channels, height, width = pixels.shape[1:]
    shape, identity = (channels, height, width), Normalisation(1.0)
    split = MemorySplit(pixels, None, shape, identity, Augmentation())
    return ImageSource(NAME, shape, None, None, train=split, test=None, normalisation=identity)


def gather(images: Tensor | np.ndarray | Iterable[Any], most: int) -> Tensor:
    """The images as one float32 tensor (N, C, H, W) on the CPU."""
    if isinstance(images, (Tensor, np.ndarray)):
        return _checked(images)
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        rule = "must be a tensor or array of shape (N, C, H, W), or give batches of such"
        raise UsageError("images", rule, got=type(images).__name__, fix="open images by name with decomp.freeze")
    parts, count = [], 0
    for batch in images:
        parts.append(_checked(_first(batch)))
        count += len(parts[-1])
        if count >= most:
            break
    if not parts:
        raise UsageError("images", "there must be at least one batch", got="none")
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise UsageError("images", "must all be of one shape", got=" and ".join(map(str, shapes[:3])))
    return torch.cat(parts)[:most]


def _first(batch: Any) -> Any:
    if isinstance(batch, dict):
        batch = list(itertools.islice(batch.values(), 1))
    return batch[0] if isinstance(batch, (list, tuple)) and batch else batch


def _checked(images: Any) -> Tensor:
    if not isinstance(images, (Tensor, np.ndarray)):
        raise UsageError("images", "a batch must begin with a tensor (N, C, H, W)", got=type(images).__name__)
    pixels = torch.as_tensor(images).detach().cpu()
    if pixels.dim() != 4:
        fix = "add the missing axes, such as images[:, None] for grey ones"
        raise UsageError("images", "must be of shape (N, C, H, W)", got=tuple(pixels.shape), fix=fix)
    if not pixels.is_floating_point():
        fix = "divide and normalise them as for the network's training"
        raise UsageError("images", "must be floating point, as the network takes them", got=pixels.dtype, fix=fix)
    return pixels.float().contiguous()
