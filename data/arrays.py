"""Image source from arrays: an ``.npz`` file, or the return value of a user's function.

Both use the same names:

=========================  ======================================================================================
``x_train`` or ``images``  images, the training split: (N,C,H,W), (N,H,W,C) or (N,H,W); uint8 or floating point
``y_train`` or ``labels``  class numbers from 0, (N,) or (N,1); leave out for unlabelled images
``x_test``, ``y_test``     the test split, the same way; may be left out
``mean``, ``std``          one number, or one a channel: images are normalised as (x - mean) / std
``class_names``            n_classes names
=========================  ======================================================================================

Four-dimensional images are channels last where the last axis is 1 or 3 long and the second is neither; otherwise
channels first. uint8 is divided by 255 before ``mean`` and ``std``; floating point is taken as it is. Without ``mean``
nothing is subtracted. A function returns a dict with these names, or images, or (images, labels), or (images, labels,
test images, test labels), with None for absent labels, or a list or generator of images or batches, with or without
labels; in a dict, ``train`` and ``test`` may be images or (images, labels). Labels that are not class numbers are
ignored, with a note. Nothing is augmented, because the augmentations
that keep the class of these images are not known. For Datasets and DataLoaders see :mod:`decomp.data.datasets`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decomp.errors import DecompError, FileError, NumericalError, UsageError, kind_of

from .items import images_of, labels_of, leaves
from .standard import Arrays
from .transforms import Augmentation, Normalisation
from .user_code import errors_in_one_line

#: Images or batches that are read of a function that gives them one by one.
MOST_ITEMS = 200_000
_NAMES = ("x_train", "y_train", "x_test", "y_test", "images", "labels", "mean", "std", "class_names")


def from_npz(name: str, path: Path, *, skip_bad: bool = False) -> Arrays:
    """Read a file of ``numpy.savez`` without opening pickled objects.

    Parameters
    ----------
    name : str
    path : Path
    skip_bad : bool
        Leave out images with NaN or infinite values.

    Raises
    ------
    UsageError, FileError
        The file is missing; broken, or without images.
    DecompError
        An array has the wrong shape or type.
    """
    if not path.is_file():
        raise UsageError(name, "there is no such file", fix="give the path of a file of numpy.savez: npz:FILE")
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("one array, not an archive of named arrays")
        with file:
            parts = {key: file[key] for key in file.files if key in _NAMES}
            names = ", ".join(file.files[:8])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        reason = "objects that would run code when opened" if "allow_pickle" in str(error) else str(error)
        reason = " ".join(reason.split())[:120] or type(error).__name__
        fix = "save plain arrays with numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)"
        raise FileError(name, "cannot be read as named arrays", got=reason, fix=fix) from error
    if "x_train" not in parts and "images" not in parts:
        raise FileError(name, "must hold x_train or images", got=names or "nothing", fix="save with those names")
    return _arrays(name, parts, skip_bad)


def from_result(name: str, result: Any, *, skip_bad: bool = False) -> Arrays:
    """Read the arrays that a user's function returned.

    Parameters
    ----------
    name : str
    result : object
    skip_bad : bool
        Leave out images with NaN or infinite values.

    Raises
    ------
    DecompError
        It returned something else.
    """
    if isinstance(result, dict):
        parts = _flat(result)
    elif isinstance(result, tuple) and len(result) in (2, 4):
        parts = dict(zip(_NAMES, result))
    elif isinstance(result, (np.ndarray, Tensor)):
        parts = {"images": result}
    elif isinstance(result, (list, Iterator)):
        with errors_in_one_line(name):
            parts = _collected(name, result)
    else:
        got = f"a tuple of {len(result)}" if isinstance(result, tuple) else kind_of(result)
        rule = (
            "must return a Dataset, a DataLoader, images, (images, labels), (images, labels, test images, test labels) "
            "or a dict, or give images one by one or in batches"
        )
        raise DecompError(name, rule, got=got)
    parts = {key: value for key, value in parts.items() if value is not None}
    if "x_train" not in parts and "images" not in parts:
        got = ", ".join(map(str, parts)) or "an empty one"
        raise DecompError(name, "its dict must hold x_train, images or train", got=got)
    return _arrays(name, parts, skip_bad)


def _collected(name: str, items: Iterable[Any]) -> dict[str, Any]:
    """Images and labels that come one by one or in batches, in one array each."""
    pixels, labels = [], []
    for count, item in enumerate(items):
        if count >= MOST_ITEMS:
            fix = "end it earlier, or return a Dataset"
            raise DecompError(name, "must end", got=f"more than {MOST_ITEMS:,} images or batches", fix=fix)
        axes = [value.ndim for _, value in leaves(item) if isinstance(value, (np.ndarray, Tensor))]
        single = max(axes, default=0) < 4
        place, image = images_of(item, 3 if single else 4, name)
        array = _numpy(image)
        pixels.append(array[None] if single else array)
        beside = labels_of(item, place)
        labels.append(None if beside is None else np.atleast_1d(_numpy(beside)))
    shapes = sorted({part.shape[1:] for part in pixels})
    if len(shapes) != 1:
        got = " and ".join(map(str, shapes[:3])) or "none"
        raise DecompError(name, "must give images of one size", got=got, fix="resize or crop them to one size first")
    parts = {"images": np.concatenate(pixels)}
    known = [part for part in labels if part is not None and part.ndim == 1]
    found = np.concatenate(known) if len(known) == len(pixels) else np.empty(0)
    return {**parts, "labels": found} if len(found) == len(parts["images"]) else parts


def _flat(result: dict[Any, Any]) -> dict[Any, Any]:
    """A dict in which ``train`` and ``test``, images or (images, labels), are replaced by the names of arrays."""
    parts = dict(result)
    for split, names in (("train", ("x_train", "y_train")), ("test", ("x_test", "y_test"))):
        found = parts.pop(split, None)
        if found is not None:
            pair = found if isinstance(found, (tuple, list)) and len(found) == 2 else (found, None)
            parts.update(zip(names, pair))
    return parts


def _arrays(name: str, parts: dict[str, Any], skip_bad: bool) -> Arrays:
    train_key = "x_train" if "x_train" in parts else "images"
    label_key = "y_train" if "y_train" in parts else "labels"
    train = _pixels(name, train_key, parts[train_key])
    labels, ignored = _labels(name, label_key, parts.get(label_key), len(train))
    test = None
    if "x_test" in parts:
        pixels = _pixels(name, "x_test", parts["x_test"])
        if pixels.shape[1:] != train.shape[1:] or pixels.dtype != train.dtype:
            raise DecompError(name, f"x_test must be like {train_key} ({_kind(train)})", got=_kind(pixels))
        test_labels, test_ignored = _labels(name, "y_test", parts.get("y_test"), len(pixels))
        test, ignored = (pixels, test_labels), ignored or test_ignored
    class_names = _class_names(name, parts.get("class_names"), labels, test)
    train, labels, skipped = _finite(name, train_key, train, labels, skip_bad)
    if test is not None:
        pixels, test_labels, bad = _finite(name, "x_test", *test, skip_bad)
        test, skipped = (pixels, test_labels), skipped + bad
    scale = 255.0 if train.dtype == torch.uint8 else 1.0
    normalisation = Normalisation(scale, *_statistics(name, parts, train.shape[1]))
    return Arrays((train, labels), test, normalisation, Augmentation(), class_names, ignored, skipped)


def _kind(pixels: Tensor) -> str:
    return f"{'x'.join(map(str, pixels.shape[1:]))} {str(pixels.dtype).removeprefix('torch.')}"


def _numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _pixels(name: str, key: str, value: Any) -> Tensor:
    array = _numpy(value)
    if array.ndim not in (3, 4) or 0 in array.shape:
        rule = f"{key} must be images, (N,C,H,W), (N,H,W,C) or (N,H,W)"
        fix = "reshape them"
        if array.ndim == 5:
            fix = "give frames of videos as separate images, with the part of the network that reads them as --module"
        raise DecompError(name, rule, got=f"shape {array.shape}", fix=fix)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        rule = f"{key} must be uint8 (0 to 255) or floating point"
        raise DecompError(name, rule, got=array.dtype, fix="convert them")
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array, order="C"))
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def _finite(
    name: str, key: str, pixels: Tensor, labels: Tensor | None, skip_bad: bool
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Images without NaN and infinite values, their labels, and the names of the others."""
    good = torch.isfinite(pixels).flatten(1).all(1)
    if bool(good.all()):
        return pixels, labels, ()
    bad = (~good).nonzero().flatten().tolist()
    if not skip_bad or not bool(good.any()):
        fix = "mend them" + ("" if skip_bad else "; freeze leaves such images out with --skip-bad")
        raise NumericalError(name, f"{key} holds NaN or Inf", got=f"image {bad[0]}", fix=fix)
    return pixels[good], None if labels is None else labels[good], tuple(f"{key} {place}" for place in bad)


def _labels(name: str, key: str, value: Any, n_images: int) -> tuple[Tensor | None, str | None]:
    """Class numbers; or None and a description of labels that are something else."""
    if value is None:
        return None, None
    array = _numpy(value)
    if array.shape[:1] != (n_images,):
        rule = f"{key} must be one class number for each of the {n_images} images"
        raise DecompError(name, rule, got=f"{array.dtype} of shape {array.shape}", fix="give as many as images")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        return None, f"{key}: {array.dtype} of shape {array.shape}"
    if n_images and array.min() < 0:
        return None, f"{key}: whole numbers from {array.min()}"
    return torch.from_numpy(array.astype(np.int64)), None


def _class_names(
    name: str, value: Any, labels: Tensor | None, test: tuple[Tensor, Tensor | None] | None
) -> tuple[str, ...] | None:
    """The class names given, or else numbers up to the largest label; None without labels."""
    labelled = [part for part in (labels, test[1] if test else None) if part is not None]
    n_classes = 1 + max((int(part.max()) for part in labelled), default=-1)
    if value is None:
        return tuple(map(str, range(n_classes))) or None
    names = tuple(str(v) for v in _numpy(value).reshape(-1))
    if len(names) < n_classes:
        raise DecompError(
            name, f"class_names must name {n_classes} classes, as many as the labels have", got=len(names)
        )
    return names


def _statistics(name: str, parts: dict[str, Any], n_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``mean`` and ``std``, one number for each channel; empty where they are not given."""
    if ("mean" in parts) != ("std" in parts):
        raise DecompError(name, "mean and std come together", got="one of them", fix="give both or neither")
    if "mean" not in parts:
        return (), ()
    values = []
    for key in ("mean", "std"):
        numbers = _numpy(parts[key]).astype(np.float64).reshape(-1)
        fits = numbers.size in (1, n_channels) and np.isfinite(numbers).all()
        if not fits or (key == "std" and numbers.min() <= 0):
            rule = f"{key} must be a number, or one for each of {n_channels} channels (std positive)"
            raise DecompError(name, rule, got=numbers.tolist())
        values.append(tuple(np.broadcast_to(numbers, (n_channels,)).tolist()))
    return values[0], values[1]
