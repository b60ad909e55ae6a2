"""Image sources by name.

=========================== ======================================================================================
``digits``                  scikit-learn's 8x8 digits; needs no download
``fashion-mnist[:DIR]``     Fashion-MNIST; DIR holds its four IDX files (``.gz`` or not) or is a torchvision root
``mnist[:DIR]``             the same for MNIST
``cifar10[:DIR]``           CIFAR-10; DIR holds ``cifar-10-batches-py/`` or the archive
``cifar100[:DIR]``          CIFAR-100; DIR holds ``cifar-100-python/`` or the archive
``imagefolder:DIR``         image files in DIR/train and DIR/val, one folder for each class; in train/ also without
``webdataset:PATTERN``      images in tar files: see :mod:`decomp.data.shards`
``npz:FILE``                arrays of ``numpy.savez``: see :mod:`decomp.data.arrays`
``package.module:function`` a user's function, called without arguments: see :mod:`decomp.data.arrays`
``path/file.py:function``   the same from a file
=========================== ======================================================================================

Without DIR the sets are looked for in ``~/.cache/decomp`` (both MNISTs also in torchvision's layout in ``~/.cache``,
Fashion-MNIST also where Debian's package installs it) and downloaded there when absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from decomp.errors import UsageError

from . import arrays, datasets, folders, shards, standard, user_code
from .given import NAME as GIVEN
from .image_options import ImageOptions, shown
from .pictures import Spread, alone
from .preprocessing import RUNS_OWN, SMALL, NetworkInput, by, channel_values
from .splits import ImageSource, MemorySplit, Split
from .standard import Arrays
from .transforms import Augmentation, Normalisation, Shape, shape_of
from .user_code import named_functions

__all__ = ["ImageSource", "Split", "open_source"]

NAMES = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "imagefolder", "webdataset", "npz")


def open_source(
    name: str,
    *,
    input_shape: Sequence[int] | None = None,
    skip_bad: bool = False,
    network: NetworkInput | None = None,
    options: ImageOptions | None = None,
    recorded: Mapping[str, Any] | None = None,
    spread: Spread = alone,
) -> ImageSource:
    """Open a source of images by its name (see the module's table).

    Parameters
    ----------
    name : str
    input_shape : (C, H, W), optional
        Shape that the model takes. One channel becomes three by repetition, three become one by luminance, and images
        of another size are resized by bilinear interpolation with antialiasing. Default: the images' own shape.
    skip_bad : bool
        Leave out image files and items that cannot be read, and images with NaN or infinite values, named in
        ``source.skipped``, instead of raising.
    network : NetworkInput, optional
        Instead of `input_shape`: where the network takes several shapes, one is chosen that suits the images.
    options : ImageOptions, optional
        Transforms of the images that a person asks for.
    recorded : dict, optional
        ``source.prepared`` of an earlier call: the same preparation of pictures again, in `input_shape`.
    spread : callable
        Divides the listing of folders and shards, and the trial of all files where `skip_bad` is, among several
        processes that call this together; see :func:`decomp.data.pictures.alone`.

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
    if name == GIVEN:
        fix = "stages that need images in files or with labels take a run that was frozen with --data NAME"
        raise UsageError(name, "were given to decomp.compress and cannot be opened again", fix=fix)
    options = options or ImageOptions()
    if network is None:
        network = NetworkInput(None if input_shape is None else shape_of(name, input_shape))
    kind, _, argument = name.partition(":")
    folder = Path(argument).expanduser() if argument else None
    if kind == "digits":
        if argument:
            raise UsageError(name, "digits takes no folder", fix="write digits")
        return _in_memory(name, standard.digits(), network, options)
    if kind == "fashion-mnist":
        return _in_memory(name, standard.fashion_mnist(folder), network, options)
    if kind == "mnist":
        return _in_memory(name, standard.mnist(folder), network, options)
    if kind in ("cifar10", "cifar100"):
        return _in_memory(name, standard.cifar(kind, folder), network, options)
    if kind in ("imagefolder", "webdataset", "npz"):
        if folder is None:
            raise UsageError(name, f"{kind} needs a path", fix=f"write {kind}:PATH")
        if kind == "imagefolder":
            return folders.open_folder(name, folder, network, options, skip_bad, recorded, spread)
        if kind == "webdataset":
            return shards.open_shards(name, argument, network, options, skip_bad, recorded, spread)
        return _in_memory(name, arrays.from_npz(name, folder, skip_bad=skip_bad), network, options)
    if user_code.names_user_code(name) and not _close_names(kind):
        result = user_code.call(name, (Tensor, np.ndarray, Dataset, DataLoader, Mapping, list, tuple))
        parts = datasets.splits_in(result)
        if parts is not None:
            return datasets.open_datasets(name, parts, network, options, recorded, skip_bad=skip_bad)
        return _in_memory(name, arrays.from_result(name, result, skip_bad=skip_bad), network, options)
    raise _unknown(name)


def _close_names(kind: str, cutoff: float = 0.75) -> list[str]:
    return difflib.get_close_matches(kind, NAMES, n=3, cutoff=cutoff)


def _unknown(name: str) -> UsageError:
    fix = _way_out(name)
    if fix is not None:
        return UsageError(f"--data {name}", "not a known source of images", fix=fix)
    close = _close_names(name.partition(":")[0], cutoff=0.5)
    known = f"known: {', '.join(NAMES)}, package.module:function, path/file.py:function"
    fix = f"did you mean {' or '.join(close)}" if close else known
    return UsageError(f"--data {name}", "not a known source of images", fix=fix)


def _way_out(name: str) -> str | None:
    """Advice for the name of a folder or file without the word in front of it or the function behind it."""
    if not name:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        return f"did you mean imagefolder:{name}"
    if path.suffix == ".npz" and path.is_file():
        return f"did you mean npz:{name}"
    if name.endswith(".py"):
        return named_functions(name) if path.is_file() else f"there is no file {name}"
    return None


def _in_memory(name: str, content: Arrays, network: NetworkInput, options: ImageOptions) -> ImageSource:
    channels, height, width = native = (*content.train[0].shape[1:],)
    unused = options.given("resize", "crop", "transforms")
    if unused:
        rule = "is for image files and for data sets of pictures"
        raise UsageError(unused[0], rule, got=name, fix="transform the images before, or give --input-size")
    usual = network.shape[1:] if network.shape is not None else (height, width)
    sizes = [(height, width)] if max(height, width) <= SMALL else []
    shape = network.choose_shape(name, native, [*sizes, usual])
    normalisation, augmentation = content.normalisation, content.augmentation
    origin = ""
    if network.normalisation is not None and normalisation.on_known_scale:
        own = network.normalisation.on_channels(shape[0])
        normalisation, origin = Normalisation(normalisation.scale, own.mean, own.std), f" ({RUNS_OWN})"
    if options.mean is not None:
        mean, std = channel_values(options, channels)
        normalisation, origin = Normalisation(normalisation.scale, mean, std), ""
    if not options.flip:
        augmentation = replace(augmentation, flip=False)

    def split(pixels: Tensor, labels: Tensor | None) -> MemorySplit:
        return MemorySplit(pixels, labels, shape, normalisation, augmentation)

    return ImageSource(
        name=name,
        input_shape=shape,
        n_classes=None if content.class_names is None else len(content.class_names),
        class_names=content.class_names,
        train=split(*content.train),
        test=None if content.test is None else split(*content.test),
        normalisation=normalisation,
        augmentation=augmentation.describe(),
        preprocessing=_described(native, shape, normalisation, augmentation) + origin,
        labels_ignored=content.labels_ignored,
        skipped=content.skipped,
    )


def _described(native: Shape, shape: Shape, normalisation: Normalisation, augmentation: Augmentation) -> str:
    """Steps from pixels in memory to the network's input, in one line."""
    steps = [by(native[1:]) if native[1:] == shape[1:] else f"{by(native[1:])} resized to {by(shape[1:])} (bilinear)"]
    if native[0] != shape[0]:
        steps.append(f"{native[0]} channel{'' if native[0] == 1 else 's'} made {shape[0]}")
    if normalisation.scale != 1:
        steps.append(f"divided by {normalisation.scale:g}")
    steps.append(f"mean {shown(normalisation.mean)}, std {shown(normalisation.std)}" if normalisation.mean else
                 "not normalised")  # fmt: skip
    training = augmentation.describe()
    return f"{', '.join(steps)}; in training {training if training != 'none' else 'the same'}"
