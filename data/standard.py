"""Small public data sets in memory: scikit-learn's digits; Fashion-MNIST, MNIST and CIFAR read by torchvision."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decomp.errors import FileError, UsageError

from .transforms import Augmentation, Normalisation

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
#: Mean and deviation of each set, for the values that it is divided by.
NORMALISATIONS = {
    # pixels run from 0 to 16; mean and deviation are those of the training split
    "digits": Normalisation(16.0, (0.3052,), (0.3760,)),
    "fashion-mnist": Normalisation(255.0, (0.2860,), (0.3530,)),
    "mnist": Normalisation(255.0, (0.1307,), (0.3081,)),
    "cifar10": Normalisation(255.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Normalisation(255.0, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
#: A mirrored digit is another sign.
NOT_MIRRORED = ("digits", "mnist")
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Arrays:
    """A data set in memory: pixels (N, C, H, W) uint8 or float32, labels (N,) int64, normalisation, augmentation."""

    train: tuple[Tensor, Tensor | None]
    test: tuple[Tensor, Tensor | None] | None
    normalisation: Normalisation
    augmentation: Augmentation
    class_names: tuple[str, ...] | None
    labels_ignored: str | None = None
    skipped: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Folder of the downloads: ``$XDG_CACHE_HOME/decomp`` or ``~/.cache/decomp``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decomp"


def digits() -> Arrays:
    """The 1,797 8x8 digits that come with scikit-learn, split 3:1 by a fixed seed, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, test = train_test_split(np.arange(len(bunch.target)), test_size=0.25, stratify=bunch.target, random_state=0)
    pixels = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return Arrays(
        train=(pixels[train], labels[train]),
        test=(pixels[test], labels[test]),
        normalisation=NORMALISATIONS["digits"],
        augmentation=Augmentation(pad=1),
        class_names=tuple(str(i) for i in range(10)),
    )


def fashion_mnist(folder: Path | None) -> Arrays:
    """Fashion-MNIST from ``folder``, the download cache, Debian's package, or the network, in this order."""
    from torchvision.datasets import FashionMNIST

    return _idx_set(
        "fashion-mnist",
        FashionMNIST,
        [folder] if folder else [cache_folder(), cache_folder().parent, DEBIAN_FASHION],
        explicit=folder is not None,
        fix="apt-get install dataset-fashion-mnist, or give the folder of the four files: fashion-mnist:DIR",
        normalisation=NORMALISATIONS["fashion-mnist"],
        augmentation=Augmentation(pad=2, flip=True),
    )


def mnist(folder: Path | None) -> Arrays:
    """MNIST from ``folder``, the download cache, or the network, in this order."""
    from torchvision.datasets import MNIST

    return _idx_set(
        "mnist",
        MNIST,
        [folder] if folder else [cache_folder(), cache_folder().parent],
        explicit=folder is not None,
        fix="give the folder of the four files: mnist:DIR",
        normalisation=NORMALISATIONS["mnist"],
        augmentation=Augmentation(pad=2),
    )


def cifar(name: str, folder: Path | None) -> Arrays:
    """``cifar10`` or ``cifar100`` from ``folder``, the download cache, or the network, in this order."""
    from torchvision import datasets

    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    fix = f"give the folder that holds {reader.base_folder}/: {name}:DIR"
    with _found_cifar(name, reader, folder, fix) as root:
        # torchvision compares each file's MD5 with the published one before it unpickles it
        with _one_line(f"{name} in {root}", fix):
            splits = [reader(root, train=train) for train in (True, False)]
    train, test = (
        (torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets, dtype=torch.int64))
        for s in splits
    )
    return Arrays(train, test, NORMALISATIONS[name], Augmentation(pad=4, flip=True), tuple(splits[0].classes))


@contextmanager
def _one_line(thing: str, fix: str) -> Iterator[None]:
    """Turn the errors that a reader or a download raises on broken or absent files into a FileError."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise FileError(thing, f"cannot be read ({reason})", fix=fix) from error


def _folder_given(name: str, folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"{name}:{folder}", "the folder must exist", fix=f"give the folder of the files: {name}:DIR")


#: A class of torchvision.datasets (no types of its own): called with a root folder and ``train``.
Reader = Any


def _idx_names(reader: Reader) -> list[str]:
    return [Path(file_name).stem for file_name, _ in reader.resources]


def _idx_folder(reader: Reader, root: Path) -> Path | None:
    """The folder with the reader's four IDX files, plain or gzipped: ``root`` or where torchvision has them."""
    for folder in (root / reader.__name__ / "raw", root / "raw", root):
        if all((folder / n).is_file() or (folder / f"{n}.gz").is_file() for n in _idx_names(reader)):
            return folder
    return None


def _idx_set(
    name: str, reader: Reader, roots: Sequence[Path], *, explicit: bool, fix: str, normalisation: Normalisation,
    augmentation: Augmentation,
) -> Arrays:  # fmt: skip
    if explicit:
        _folder_given(name, roots[0])
    folder = next((folder for folder in (_idx_folder(reader, root) for root in roots) if folder), None)
    if folder is None and explicit:
        files = ", ".join(f"{n}[.gz]" for n in _idx_names(reader))
        raise FileError(f"{name}:{roots[0]}", f"the folder must hold {files}", fix="give the folder where they are")
    if folder is None:
        _download(name, fix, lambda part: reader(part, download=True), [reader.__name__])
        folder = _idx_folder(reader, cache_folder())
        if folder is None:
            raise FileError(name, "the download must hold the four IDX files", fix=fix)
    # The reader takes plain files in a folder of its own layout: they are unpacked or linked into one.
    with tempfile.TemporaryDirectory(prefix="decomp-") as scratch, _one_line(f"{name} in {folder}", fix):
        raw = Path(scratch) / reader.__name__ / "raw"
        raw.mkdir(parents=True)
        for file_name in _idx_names(reader):
            plain = folder / file_name
            if plain.is_file():
                (raw / file_name).symlink_to(plain.resolve())
            else:
                with gzip.open(f"{plain}.gz") as packed, open(raw / file_name, "wb") as target:
                    shutil.copyfileobj(packed, target)
        train, test = (reader(scratch, train=is_train) for is_train in (True, False))
        for split in (train, test):
            if len(split.data) != len(split.targets):
                raise ValueError(f"{len(split.data)} images but {len(split.targets)} labels")
    return Arrays(
        (train.data[:, None], train.targets),
        (test.data[:, None], test.targets),
        normalisation,
        augmentation,
        tuple(reader.classes),
    )


def _download(name: str, fix: str, fetch: Callable[[str], object], entries: list[str]) -> None:
    """Call ``fetch`` on a temporary folder, then move whole ``entries`` of it into the cache."""
    cache = cache_folder()
    timeout = socket.getdefaulttimeout()
    with _one_line(f"{name} (neither found nor downloaded)", fix):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="part-", dir=cache) as part:
            try:
                # torchvision opens its addresses without a timeout: without an answer it would wait for ever
                socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
                fetch(part)
            finally:
                socket.setdefaulttimeout(timeout)
            for entry in entries:
                shutil.rmtree(cache / entry, ignore_errors=True)
                os.replace(Path(part) / entry, cache / entry)


@contextmanager
def _found_cifar(name: str, reader: Reader, folder: Path | None, fix: str) -> Iterator[Path]:
    """Root folder for the reader: the given one, that of an unpacked archive, the cache, or a new download in it."""
    if folder is not None:
        _folder_given(name, folder)
        if (folder / reader.base_folder).is_dir():
            yield folder
        elif folder.name == reader.base_folder:
            yield folder.parent
        elif (folder / reader.filename).is_file():
            from torchvision.datasets.utils import extract_archive

            with tempfile.TemporaryDirectory(prefix="decomp-") as scratch:
                with _one_line(str(folder / reader.filename), fix):
                    extract_archive(str(folder / reader.filename), scratch)
                yield Path(scratch)
        else:
            rule = f"the folder must hold {reader.base_folder}/ or {reader.filename}"
            raise FileError(f"{name}:{folder}", rule, fix="give the folder where they are")
        return
    if not (cache_folder() / reader.base_folder).is_dir():
        _download(name, fix, lambda part: reader(part, download=True), [reader.base_folder])
    yield cache_folder()
