"""Folders of image files, decoded on demand by a pool of threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from decomp.errors import FileError, UsageError

from .splits import ImageSource, Indices, Split, batches_of
from .transforms import Normalisation, Shape, adapt, check_shape, draw

IMAGENET = Normalisation(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NATIVE_SHAPE = (3, 224, 224)
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# The usual evaluation of ImageNet classifiers: short side to 256, the middle 224x224.
_MARGIN = 256 / 224
# A narrow strip enlarged until its short side fits would fill the memory: beyond this ratio, the sides are cropped.
_LONGEST = 16
_N_NAMED = 3
_AUGMENTATION = "crop at a random place of the resized image, mirrored with probability 1/2"


def read_image(path: str | os.PathLike[str], *, fast: bool = False) -> Image.Image:
    """Read an image file as 8-bit RGB, rotated according to its EXIF orientation.

    Greyscale is repeated, 16-bit greyscale is scaled to 8 bits, alpha is dropped, of an animation the first image is
    read.

    Parameters
    ----------
    path : path
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
        file_format = image.format
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
            # PIL's own conversion would clip at 255 instead of scaling
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError("32-bit pixels have no agreed range")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")


def _covering(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Resize to cover height x width with the usual margin: uint8, shape (H', W', 3)."""
    longest = _LONGEST * min(image.size)
    if max(image.size) > longest:
        image = ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
    to_height, to_width = round(height * _MARGIN), round(width * _MARGIN)
    if to_height * image.width >= to_width * image.height:
        size = (max(to_width, int(to_height * image.width / image.height)), to_height)
    else:
        size = (to_width, max(to_height, int(to_width * image.height / image.width)))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


class FolderSplit(Split):
    """Split of image files: resized to 256/224 of the target size, then a centre crop, or a random crop and mirroring.

    Parameters
    ----------
    name : str
        Of the source, for errors.
    root : Path
    files : list of str
        Relative to ``root``.
    labels : Tensor of int64, shape (N,), or None
    shape : (C, H, W)
    """

    def __init__(self, name: str, root: Path, files: list[str], labels: Tensor | None, shape: Shape):
        self._name, self._root, self._files, self._labels, self._shape = name, root, files, labels, shape
        self._normalisation = IMAGENET.on_channels(shape[0])

    def __len__(self) -> int:
        return len(self._files)

    def digest(self) -> str:
        """SHA-256 (hex) over names, sizes and labels of the files; reading them all could take hours."""
        sha = hashlib.sha256()
        labels = [-1] * len(self) if self._labels is None else self._labels.tolist()
        for file, label in zip(self._files, labels):
            sha.update(f"{file}\0{os.stat(self._root / file).st_size}\0{label}\n".encode())
        return sha.hexdigest()

    def batches(
        self, order: Indices, batch_size: int, *, augment_seed: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As :meth:`Split.batches`; the files of the next batch are decoded while a batch is in use."""
        with _pool() as pool:
            pending = None
            for indices in batches_of(order, batch_size):
                submitted = (indices, self._submit(pool, indices))
                if pending is not None:
                    yield self._finish(*pending, augment_seed), self.labels(pending[0])
                pending = submitted
            if pending is not None:
                yield self._finish(*pending, augment_seed), self.labels(pending[0])

    def _load(self, indices: Tensor, augment_seed: int | None) -> Tensor:
        with _pool() as pool:
            return self._finish(indices, self._submit(pool, indices), augment_seed)

    def _submit(self, pool: ThreadPoolExecutor, indices: Tensor) -> list[_Decoding]:
        return [pool.submit(self._decode, self._files[index]) for index in indices.tolist()]

    def _decode(self, file: str) -> np.ndarray | _Unreadable:
        try:
            return _covering(read_image(self._root / file), *self._shape[1:])
        except Exception as error:  # PIL's readers raise anything on a broken file: OSError, SyntaxError, struct.error
            return _Unreadable(file, error)

    def _finish(self, indices: Tensor, decoding: list[_Decoding], augment_seed: int | None) -> Tensor:
        results = [future.result() for future in decoding]
        bad = [item for item in results if isinstance(item, _Unreadable)]
        if bad:
            raise _unreadable(self._name, bad)
        resized = [item for item in results if not isinstance(item, _Unreadable)]
        height, width = self._shape[1:]
        sizes = torch.tensor([item.shape[:2] for item in resized]).reshape(-1, 2)
        room = sizes - torch.tensor([height, width])
        if augment_seed is None:
            top, left = (torch.tensor([round(r / 2) for r in side.tolist()], dtype=torch.int64) for side in room.T)
            flip = torch.zeros(len(indices), dtype=torch.bool)
        else:
            top, left = (draw(augment_seed, indices, stream, room[:, stream] + 1) for stream in (0, 1))
            flip = draw(augment_seed, indices, 2, 2).bool()
        pixels = np.empty((len(resized), height, width, 3), np.uint8)
        for i, (image, y, x, mirror) in enumerate(zip(resized, top.tolist(), left.tolist(), flip.tolist())):
            window = image[y : y + height, x : x + width]
            pixels[i] = window[:, ::-1] if mirror else window
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(IMAGENET.scale)
        return self._normalisation.shift(adapt(images, self._shape))

    def without_unreadable(self) -> tuple[FolderSplit, int]:
        """Read every file once; returns a split of the readable files, and the number of unreadable ones."""
        with _pool() as pool:
            readable = torch.tensor(list(pool.map(self._can_be_read, self._files)), dtype=torch.bool)
        keep = readable.nonzero().flatten()
        files = [self._files[i] for i in keep.tolist()]
        split = FolderSplit(self._name, self._root, files, self.labels(keep), self._shape)
        return split, len(self) - len(split)

    def _can_be_read(self, file: str) -> bool:
        try:
            read_image(self._root / file, fast=True)
        except Exception:  # as in _decode
            return False
        return True


class _Unreadable:
    """A file that cannot be decoded, and the reason."""

    def __init__(self, file: str, error: Exception):
        self.file, self.reason = file, " ".join(str(error).split())[:80] or type(error).__name__


_Decoding = Future[np.ndarray | _Unreadable]


def _unreadable(name: str, bad: list[_Unreadable]) -> FileError:
    named = ", ".join(f"{item.file} ({item.reason})" for item in bad[:_N_NAMED])
    more = f" and {len(bad) - _N_NAMED} more" if len(bad) > _N_NAMED else ""
    fix = "mend or remove them, or leave unreadable images out with --skip-bad"
    return FileError(name, f"image files cannot be read: {named}{more}", fix=fix)


def _pool() -> ThreadPoolExecutor:
    # Threads, not processes: PIL releases the interpreter lock while it decodes and resizes.
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))


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


def _scan(name: str, folder: Path, classes: list[str]) -> tuple[list[str], Tensor | None]:
    """Files of ``folder`` and their labels: positions in ``classes``, which must name every class folder."""
    unknown = [c for c in _class_folders(folder) if c not in classes]
    if unknown and classes:
        rule = f"class folders of {folder.name}/ must be those of train/"
        raise FileError(name, rule, got=", ".join(unknown[:_N_NAMED]), fix="rename or remove them")
    labels = None
    if not classes:
        files = _images_below(folder, folder)
    else:
        by_class = [_images_below(folder / class_name, folder) for class_name in classes]
        files = [file for of_class in by_class for file in of_class]
        labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(list(map(len, by_class))))
    if not files:
        fix = f"put images ({' '.join(SUFFIXES)}) into it, in one folder a class or, without labels, directly"
        raise FileError(name, f"{folder.name}/ holds no images", fix=fix)
    return files, labels


def open_folder(name: str, root: Path, input_shape: Sequence[int] | None, skip_bad: bool) -> ImageSource:
    """Open ``root/train`` and ``root/val``; see :func:`decomp.data.sources.open_source`."""
    if not root.is_dir():
        raise UsageError(name, "the folder must exist", fix="give the folder that holds train/ and val/")
    if not (root / "train").is_dir():
        rule = "the folder must hold train/ (and val/ for evaluation)"
        raise FileError(name, rule, fix="calibration images are taken from train/ alone")
    shape = check_shape(name, NATIVE_SHAPE, input_shape)
    has_test = (root / "val").is_dir()
    classes = _class_folders(root / "train")
    empty = [c for c in classes if not _images_below(root / "train" / c, root)]
    if empty and len(empty) < len(classes):
        rule = f"every class folder of train/ must hold images, {', '.join(empty[:_N_NAMED])} does not"
        raise FileError(name, rule, fix="put images into it or remove it")
    # Unlabelled training images may still come with a labelled test split.
    test_classes = classes or (_class_folders(root / "val") if has_test else [])
    train = FolderSplit(name, root / "train", *_scan(name, root / "train", classes), shape)
    test = FolderSplit(name, root / "val", *_scan(name, root / "val", test_classes), shape) if has_test else None
    skipped = 0
    if skip_bad:
        train, skipped = train.without_unreadable()
        if test is not None:
            test, n_bad = test.without_unreadable()
            skipped += n_bad
        for split_name, split in (("train/", train), ("val/", test)):
            if split is not None and not len(split):
                raise FileError(name, f"no image of {split_name} can be read", fix="mend the files")
    return ImageSource(
        name=name,
        input_shape=shape,
        n_classes=len(test_classes) or None,
        class_names=tuple(test_classes) or None,
        train=train,
        test=test,
        normalisation=IMAGENET,
        augmentation=_AUGMENTATION,
        skipped=skipped,
    )
