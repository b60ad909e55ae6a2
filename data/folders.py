"""Folders of image files, decoded on demand by a pool of threads."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from decomp.errors import FileError, UsageError

from .image_options import ImageOptions
from .pictures import PictureSplit, Preparation, Spread, alone, rgb, threaded
from .preparation import prepare
from .preprocessing import NetworkInput, Sides
from .splits import ImageSource

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
_N_NAMED = 3
_SAMPLED = 500


def read_image(path: str | os.PathLike[str] | IO[bytes], *, fast: bool = False) -> Image.Image:
    """Read an image file as 8-bit RGB, rotated according to its EXIF orientation.

    Greyscale is repeated, 16-bit greyscale is scaled to 8 bits, alpha is dropped, of an animation the first image is
    read.

    Parameters
    ----------
    path : path or file
    fast : bool
        Decode a JPEG at an eighth of its size: enough to check that it can be read.

    Raises
    ------
    Exception
        Of many kinds, from PIL's readers, for a broken file; ValueError for 32-bit pixels.
    """
    with Image.open(path) as image:
        if fast:
            image.draft("RGB", (1, 1))
        image.load()
        turned = ImageOps.exif_transpose(image)
        turned.format = image.format
        return rgb(turned)


class FolderSplit(PictureSplit):
    """Split of image files.

    Parameters
    ----------
    name : str
        Of the source, for errors.
    root : Path
    files : list of str
        Relative to ``root``.
    labels : Tensor of int64, shape (N,), or None
    preparation : Preparation
    """

    def __init__(self, name: str, root: Path, files: list[str], labels: Tensor | None, preparation: Preparation):
        super().__init__(name, labels, preparation)
        self._root, self._files = root, files

    def __len__(self) -> int:
        return len(self._files)

    def digest(self) -> str:
        """SHA-256 (hex) over names, sizes and labels of the files; reading them all could take hours."""
        sha = hashlib.sha256()
        labels = [-1] * len(self) if self._labels is None else self._labels.tolist()
        for file, label in zip(self._files, labels):
            sha.update(f"{file}\0{os.stat(self._root / file).st_size}\0{label}\n".encode())
        return sha.hexdigest()

    def picture(self, index: int, mode: str) -> Image.Image:
        """One picture in mode L or RGB; raises anything for a file that cannot be read."""
        image = read_image(self._root / self._files[index])
        return image if image.mode == mode else image.convert(mode)

    def title(self, index: int) -> str:
        """The file's path below the folder of the split."""
        return self._files[index]

    def without_unreadable(self, spread: Spread = alone) -> tuple[FolderSplit, list[str]]:
        """Read every file once; returns a split of the readable files, and the unreadable ones in their folder."""
        readable = torch.tensor(threaded(self._can_be_read, self._files, spread), dtype=torch.bool)
        keep = readable.nonzero().flatten()
        files = [self._files[i] for i in keep.tolist()]
        split = FolderSplit(self._name, self._root, files, self.labels(keep), self.preparation)
        return split, [f"{self._root.name}/{file}" for file, good in zip(self._files, readable.tolist()) if not good]

    def _can_be_read(self, file: str) -> bool:
        try:
            read_image(self._root / file, fast=True)
        except Exception:  # as in PictureSplit
            return False
        return True


def size_of(path: str | os.PathLike[str] | IO[bytes]) -> Sides | None:
    """Height and width of an image file as it is shown, from its header; None where that cannot be read."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return image.size if turned else (image.height, image.width)
    except Exception:  # as in PictureSplit
        return None


def common_size(root: Path, files: list[str], spread: Spread = alone) -> Sides | None:
    """Height and width of all image files, of at most 500 of them; None where they differ."""
    sample = files[:: max(1, len(files) // _SAMPLED)]
    sizes = {size for size in threaded(lambda file: size_of(root / file), sample, spread) if size is not None}
    return sizes.pop() if len(sizes) == 1 else None


def _images_below(folder: Path, root: Path) -> list[str]:
    """Image files in a folder and below it, relative to ``root``, in sorted order."""
    paths = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        names = sorted(f for f in files if not f.startswith(".") and f.lower().endswith(SUFFIXES))
        paths += [str(Path(place, f).relative_to(root)) for f in names]
    return paths


def _class_folders(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))


def _scan(name: str, folder: Path, classes: list[str], spread: Spread) -> tuple[list[str], Tensor | None]:
    """Files of ``folder`` and their labels: positions in ``classes``, which must name every class folder."""
    unknown = [c for c in _class_folders(folder) if c not in classes]
    if unknown and classes:
        rule = f"class folders of {folder.name}/ must be those of train/"
        raise FileError(name, rule, got=", ".join(unknown[:_N_NAMED]), fix="rename or remove them")
    labels = None
    if not classes:
        files = _images_below(folder, folder)
    else:
        by_class = threaded(lambda class_name: _images_below(folder / class_name, folder), classes, spread)
        files = [file for of_class in by_class for file in of_class]
        labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(list(map(len, by_class))))
    if not files:
        fix = f"put images ({' '.join(SUFFIXES)}) into it, in one folder a class or, without labels, directly"
        raise FileError(name, f"{folder.name}/ holds no images", fix=fix)
    return files, labels


def open_folder(
    name: str, root: Path, network: NetworkInput, options: ImageOptions, skip_bad: bool, recorded: Any = None,
    spread: Spread = alone,
) -> ImageSource:  # fmt: skip
    """Open ``root/train`` and ``root/val``; see :func:`decomp.data.sources.open_source`."""
    if not root.is_dir():
        raise UsageError(name, "the folder must exist", fix="give the folder that holds train/ and val/")
    if not (root / "train").is_dir():
        rule = "the folder must hold train/ (and val/ for evaluation)"
        fix = f"put the images into {root / 'train'}, in one folder a class or, without labels, directly"
        raise FileError(name, rule, fix=fix)
    has_test = (root / "val").is_dir()
    classes = _class_folders(root / "train")
    # Unlabelled training images may still come with a labelled test split.
    test_classes = classes or (_class_folders(root / "val") if has_test else [])
    scanned = _scan(name, root / "train", classes, spread)
    counts = torch.bincount(scanned[1], minlength=len(classes)).tolist() if scanned[1] is not None else []
    empty = [class_name for class_name, n in zip(classes, counts) if not n]
    if empty:
        rule = f"every class folder of train/ must hold images, {', '.join(empty[:_N_NAMED])} does not"
        raise FileError(name, rule, fix="put images into it or remove it")

    def first() -> Image.Image:
        for file in scanned[0]:
            try:
                return read_image(root / "train" / file)
            except Exception:  # as in PictureSplit; where all are broken, the last one's error is as good as any
                if file == scanned[0][-1] or not skip_bad:
                    raise
        raise AssertionError

    prepared = prepare(
        name, options, network, lambda: common_size(root / "train", scanned[0], spread), first, recorded=recorded
    )
    train = FolderSplit(name, root / "train", *scanned, prepared.preparation)
    test = None
    if has_test:
        test = FolderSplit(name, root / "val", *_scan(name, root / "val", test_classes, spread), prepared.preparation)
    skipped: list[str] = []
    if skip_bad:
        train, skipped = train.without_unreadable(spread)
        if test is not None:
            test, bad = test.without_unreadable(spread)
            skipped += bad
        for split_name, split in (("train/", train), ("val/", test)):
            if split is not None and not len(split):
                raise FileError(name, f"no image of {split_name} can be read", fix="mend the files")
    return ImageSource(
        name=name,
        input_shape=prepared.shape,
        n_classes=len(test_classes) or None,
        class_names=tuple(test_classes) or None,
        train=train,
        test=test,
        normalisation=prepared.normalisation,
        augmentation=prepared.augmentation,
        preprocessing=prepared.description,
        prepared=prepared.record,
        skipped=tuple(skipped),
    )
