"""Image sources by name.

=========================== ======================================================================================
``digits``                  scikit-learn's 8x8 digits; needs no download
``fashion-mnist[:DIR]``     Fashion-MNIST; DIR holds its four IDX files (``.gz`` or not) or is a torchvision root
``mnist[:DIR]``             the same for MNIST
``cifar10[:DIR]``           CIFAR-10; DIR holds ``cifar-10-batches-py/`` or the archive
``cifar100[:DIR]``          CIFAR-100; DIR holds ``cifar-100-python/`` or the archive
``imagefolder:DIR``         image files in DIR/train and DIR/val, one folder for each class; in train/ also without
``npz:FILE``                arrays of ``numpy.savez``: see :mod:`decomp.data.arrays`
``package.module:function`` a user's function, called without arguments: see :mod:`decomp.data.arrays`
``path/file.py:function``   the same from a file
=========================== ======================================================================================

Without DIR the sets are looked for in ``~/.cache/decomp`` (both MNISTs also in torchvision's layout in ``~/.cache``,
Fashion-MNIST also where Debian's package installs it) and downloaded there when absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from decomp.errors import UsageError

from . import arrays, folders, standard, user_code
from .splits import ImageSource, MemorySplit, Split
from .standard import Arrays
from .transforms import check_shape

__all__ = ["ImageSource", "Split", "open_source"]

NAMES = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "imagefolder", "npz")


def open_source(name: str, *, input_shape: Sequence[int] | None = None, skip_bad: bool = False) -> ImageSource:
    """Open a source of images by its name (see the module's table).

    Parameters
    ----------
    name : str
    input_shape : (C, H, W), optional
        Shape that the model takes. One channel becomes three by repetition, three become one by luminance, and images
        of another size are resized by bilinear interpolation with antialiasing. Default: the images' own shape.
    skip_bad : bool
        Leave unreadable image files out, counted in ``source.skipped``, instead of raising.

    Returns
    -------
    ImageSource

    Raises
    ------
    UsageError
        An unknown name, or a shape to which these images cannot be converted.
    FileError
        Files that are missing or cannot be read.
    """
    kind, _, argument = name.partition(":")
    folder = Path(argument).expanduser() if argument else None
    if kind == "digits":
        if argument:
            raise UsageError(name, "digits takes no folder", fix="write digits")
        return _in_memory(name, standard.digits(), input_shape)
    if kind == "fashion-mnist":
        return _in_memory(name, standard.fashion_mnist(folder), input_shape)
    if kind == "mnist":
        return _in_memory(name, standard.mnist(folder), input_shape)
    if kind in ("cifar10", "cifar100"):
        return _in_memory(name, standard.cifar(kind, folder), input_shape)
    if kind in ("imagefolder", "npz"):
        if folder is None:
            raise UsageError(name, f"{kind} needs a path", fix=f"write {kind}:PATH")
        if kind == "imagefolder":
            return folders.open_folder(name, folder, input_shape, skip_bad)
        return _in_memory(name, arrays.from_npz(name, folder), input_shape)
    if user_code.names_user_code(name) and not _close_names(kind):
        return _in_memory(name, arrays.from_function(name), input_shape)
    raise _unknown(name)


def _close_names(kind: str, cutoff: float = 0.75) -> list[str]:
    return difflib.get_close_matches(kind, NAMES, n=3, cutoff=cutoff)


def _unknown(name: str) -> UsageError:
    close = _close_names(name.partition(":")[0], cutoff=0.5)
    known = f"known: {', '.join(NAMES)}, package.module:function, path/file.py:function"
    fix = f"did you mean {' or '.join(close)}" if close else known
    return UsageError(f"--data {name}", "not a known source of images", fix=fix)


def _in_memory(name: str, content: Arrays, input_shape: Sequence[int] | None) -> ImageSource:
    channels, height, width = content.train[0].shape[1:]
    shape = check_shape(name, (channels, height, width), input_shape)

    def split(pixels: Tensor, labels: Tensor | None) -> MemorySplit:
        return MemorySplit(pixels, labels, shape, content.normalisation, content.augmentation)

    return ImageSource(
        name=name,
        input_shape=shape,
        n_classes=None if content.class_names is None else len(content.class_names),
        class_names=content.class_names,
        train=split(*content.train),
        test=None if content.test is None else split(*content.test),
        normalisation=content.normalisation,
        augmentation=content.augmentation.describe(),
    )
