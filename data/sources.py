"""Images by name.

==========================  ======================================================================
``digits``                  scikit-learn's 8x8 digits; needs no download
``fashion-mnist[:DIR]``     Fashion-MNIST; DIR holds its four IDX files (``.gz`` or not) or is a torchvision root
``mnist[:DIR]``             the same for MNIST
``cifar10[:DIR]``           CIFAR-10; DIR holds ``cifar-10-batches-py/`` or the archive
``cifar100[:DIR]``          CIFAR-100; DIR holds ``cifar-100-python/`` or the archive
==========================  ======================================================================

Without DIR the sets are looked for in ``~/.cache/decomp`` (Fashion-MNIST also where Debian's package installs it) and
downloaded there when absent.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from decomp.data import standard
from decomp.data.splits import ImageSource, MemorySplit, Split
from decomp.data.standard import Arrays
from decomp.data.transforms import check_shape
from decomp.errors import UsageError

__all__ = ["ImageSource", "Split", "open_source"]

NAMES = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100")


def open_source(name: str, *, input_shape: tuple[int, int, int] | None = None, skip_bad: bool = False) -> ImageSource:
    """Open a source of images by its name (see the module's table).

    Parameters
    ----------
    name : str
    input_shape : (C, H, W), optional
        What the model takes. One channel becomes three by repetition, three become one by luminance, another size is
        reached by bilinear interpolation with antialiasing. Default: the images' own shape.
    skip_bad : bool
        Leave unreadable image files out, counted in ``source.skipped``, instead of raising.

    Returns
    -------
    ImageSource

    Raises
    ------
    UsageError
        A name that is not known, or a shape that cannot be made of these images.
    FileError
        Files that are missing or cannot be read.
    """
    kind, _, argument = name.partition(":")
    folder = Path(argument).expanduser() if argument else None
    if kind == "digits":
        if argument:
            raise UsageError(name, "digits takes no folder", fix="write digits")
        arrays = standard.digits()
    elif kind == "fashion-mnist":
        arrays = standard.fashion_mnist(folder)
    elif kind == "mnist":
        arrays = standard.mnist(folder)
    elif kind in ("cifar10", "cifar100"):
        arrays = standard.cifar(kind, folder)
    else:
        raise _unknown(name)
    return _in_memory(name, arrays, input_shape)


def _unknown(name: str) -> UsageError:
    close = difflib.get_close_matches(name.partition(":")[0], NAMES, n=3, cutoff=0.5)
    fix = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(NAMES)}"
    return UsageError(f"--data {name}", "not a known source of images", fix=fix)


def _in_memory(name: str, arrays: Arrays, input_shape) -> ImageSource:
    shape = check_shape(name, tuple(arrays.train[0].shape[1:]), input_shape)

    def split(images_and_labels):
        if images_and_labels is None:
            return None
        return MemorySplit(*images_and_labels, shape, arrays.normalisation, arrays.augmentation)

    return ImageSource(
        name=name,
        input_shape=shape,
        n_classes=None if arrays.class_names is None else len(arrays.class_names),
        class_names=arrays.class_names,
        train=split(arrays.train),
        test=split(arrays.test),
        normalisation=arrays.normalisation,
        augmentation=arrays.augmentation.describe(),
    )
