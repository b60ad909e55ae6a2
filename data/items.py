"""Images and labels in an item or batch of any form: the tensor that looks like images, the number beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from decomp.errors import UsageError, kind_of

IMAGE_NAMES = ("image", "images", "img", "imgs", "x", "pixel_values", "input", "inputs", "data")
LABEL_NAMES = ("label", "labels", "y", "target", "targets", "class", "classes", "class_id", "category")


def leaves(thing: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in nested dicts, lists and tuples; names are keys and places joined by dots."""
    if isinstance(thing, Mapping):
        parts: Any = thing.items()
    elif isinstance(thing, (list, tuple)) and not (
        thing and all(isinstance(part, (int, float, str)) for part in thing)
    ):
        parts = enumerate(thing)
    else:
        yield name, thing
        return
    for key, part in parts:
        yield from leaves(part, f"{name}.{key}" if name else str(key))


def images_of(batch: Any, n_axes: int, name: str) -> tuple[str, Any]:
    """The images in a batch, or the image in an item.

    Parameters
    ----------
    batch : object
        A tensor, array or PIL image, or nested dicts, lists and tuples of such.
    n_axes : int
        4 for a batch, 3 for an item.
    name : str
        Of the source, for errors.

    Returns
    -------
    str
        Name of the images in the batch; empty where the batch is the images.
    Tensor, ndarray or PIL image

    Raises
    ------
    UsageError
        Nothing looks like images; says what there is.
    """
    found = list(leaves(batch))
    likely = [(key, value) for key, value in found if isinstance(value, Image.Image) or _axes(value) == n_axes]
    if not likely and n_axes == 3:  # an image of one channel without its axis
        likely = [(key, value) for key, value in found if _axes(value) == 2]
    named = [pair for pair in likely if pair[0].rpartition(".")[2].lower() in IMAGE_NAMES]
    if likely:
        return (named or likely)[0]
    rule, fix = ("a batch must hold images (N, C, H, W)", None) if n_axes == 4 else ("an item must hold an image", None)
    tensors = [value for _, value in found if _axes(value) is not None]
    if any(_axes(value) == n_axes + 1 for value in tensors):
        fix = "give single images: frames of videos as separate images, such as x.flatten(0, 1)"
    elif n_axes == 4 and any(_axes(value) == 3 for value in tensors):
        fix = (
            "stack single images of one size, torch.stack(images), or add the axis that grey ones lack, images[:, None]"
        )
    raise UsageError(name, rule, got=described(batch), fix=fix)


def labels_of(batch: Any, images: str) -> Any:
    """The labels in an item or batch beside the images of this name, whatever they are; None where there are none."""
    others = [(key, value) for key, value in leaves(batch) if key != images]
    named = [value for key, value in others if key.rpartition(".")[2].lower() in LABEL_NAMES]
    return named[0] if named else (others[0][1] if others else None)


def class_number(label: Any) -> int | None:
    """A label as a class number from 0; None where it is something else."""
    if isinstance(label, (Tensor, np.ndarray)):
        if label.size != 1 if isinstance(label, np.ndarray) else label.numel() != 1:
            return None
        label = label.reshape(-1)[0].item()
    whole = isinstance(label, (int, np.integer)) and not isinstance(label, (bool, np.bool_))
    return int(label) if whole and label >= 0 else None


def _axes(value: Any) -> int | None:
    return value.ndim if isinstance(value, (Tensor, np.ndarray)) else None


def described(thing: Any) -> str:
    """What there is, by name, kind and shape."""
    parts = []
    for key, value in list(leaves(thing))[:6]:
        if isinstance(value, (Tensor, np.ndarray)):
            kind = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
            kind = f"{type(value).__name__} {str(value)[:20]}"
        elif isinstance(value, (list, tuple)):
            kind = str(value)[:40]
        else:
            kind = "nothing" if value is None else kind_of(value)
        parts.append(f"{key}: {kind}" if key else kind)
    return ", ".join(parts) or "nothing"


def as_tensor(image: Any) -> Tensor:
    """An image or batch as a tensor on the CPU; other floating point becomes float32."""
    tensor = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    return tensor.float() if tensor.is_floating_point() else tensor


def channels_first(image: Tensor) -> Tensor:
    """(H, W) and (H, W, C) as (C, H, W); C is 1 or 3 where the last axis is so long and the first is not."""
    if image.dim() == 2:
        return image[None]
    if image.shape[2] in (1, 3) and image.shape[0] not in (1, 3):
        return image.permute(2, 0, 1)
    return image
