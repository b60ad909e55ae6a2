"""Shards of images: tar files as the library webdataset writes them, read at random by the offsets in them.

A sample is the files of one name: an image, and its class number in ``.cls`` (a number) or ``.json`` (a number, or an
object with one under ``label``, ``cls`` or another usual name).
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from decomp.errors import FileError, UsageError

from .folders import SUFFIXES, read_image, size_of
from .image_options import ImageOptions
from .items import LABEL_NAMES
from .pictures import PictureSplit, Preparation, Spread, alone, threaded
from .preparation import prepare
from .preprocessing import NetworkInput, Sides
from .splits import ImageSource

TEST = ",test="  # between the patterns of the training and the test shards
_LABEL_FILES = ("cls", "json")
_SAMPLED = 500


@dataclass(frozen=True)
class Sample:
    """One image in a shard.

    Attributes
    ----------
    shard : Path
    file : str
        Name of the image in it.
    offset, size : int
        Place of the image's bytes in the shard.
    label : int or None
    """

    shard: Path
    file: str
    offset: int
    size: int
    label: int | None


class ShardSplit(PictureSplit):
    """Split of images in shards; an index is an image's place in the shards in order of their names.

    Parameters
    ----------
    name : str
        Of the source, for errors.
    samples : list of Sample
    preparation : Preparation
    """

    def __init__(self, name: str, samples: list[Sample], preparation: Preparation):
        super().__init__(name, _labels(name, samples), preparation)
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def digest(self) -> str:
        """SHA-256 (hex) over names of shards and images, sizes and labels; reading them all could take hours."""
        sha = hashlib.sha256()
        for one in self._samples:
            sha.update(f"{one.shard.name}\0{one.file}\0{one.size}\0{one.label}\n".encode())
        return sha.hexdigest()

    def picture(self, index: int, mode: str) -> Image.Image:
        """One picture in mode L or RGB; raises anything for one that cannot be read."""
        image = read_image(_content(self._samples[index]))
        return image if image.mode == mode else image.convert(mode)

    def title(self, index: int) -> str:
        """The image's name behind that of its shard."""
        one = self._samples[index]
        return f"{one.shard.name}/{one.file}"

    def without_unreadable(self, spread: Spread = alone) -> tuple[ShardSplit, list[str]]:
        """Read every image once; returns a split of the readable ones, and the names of the others."""
        readable = threaded(_can_be_read, self._samples, spread)
        kept = [one for one, good in zip(self._samples, readable) if good]
        bad = [self.title(index) for index, good in enumerate(readable) if not good]
        if not kept:
            raise FileError(self._name, "no image of its shards can be read", fix="mend the files")
        return ShardSplit(self._name, kept, self.preparation), bad


def _content(sample: Sample) -> io.BytesIO:
    with open(sample.shard, "rb") as file:
        file.seek(sample.offset)
        return io.BytesIO(file.read(sample.size))


def _can_be_read(sample: Sample) -> bool:
    try:
        read_image(_content(sample), fast=True)
    except Exception:  # as in PictureSplit
        return False
    return True


def _labels(name: str, samples: list[Sample]) -> Tensor | None:
    without = [one for one in samples if one.label is None]
    if len(without) == len(samples):
        return None
    if without:
        rule = f"all images must have a class number, or none; {without[0].shard.name}/{without[0].file} has none"
        raise FileError(name, rule, fix=f"add its .{' or .'.join(_LABEL_FILES)}, or leave the image out")
    return torch.tensor([one.label for one in samples], dtype=torch.int64)


def shards_of(name: str, pattern: str) -> list[Path]:
    """Shards that a pattern names: braces such as ``{0000..0146}`` first, then ``*`` and ``?``; sorted, each once."""
    if importlib.util.find_spec("webdataset") is None:
        raise UsageError(name, "needs the library webdataset", fix='pip install "decomp[webdataset]"')
    from webdataset.shardlists import expand_urls

    found: set[Path] = set()
    for part in expand_urls(str(Path(pattern).expanduser())):
        matches = glob.glob(part)
        if not matches:
            fix = "give existing tar files; write the pattern in quotes, so that the shell leaves it alone"
            raise FileError(name, f"there is no file {part}", fix=fix)
        found.update(map(Path, matches))
    return sorted(found)


def samples_of(name: str, shard: Path) -> list[Sample]:
    """Images of one shard in their order; only headers and labels are read.

    Raises
    ------
    FileError
        It is no whole tar file, or a label is no class number.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:  # behind each one tarfile looks for the end of its content, so a cut is an error
                folder, slash, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                key = folder + slash + stem
                if not member.isreg() or not stem:
                    continue
                if f".{suffix.lower()}" in SUFFIXES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix.lower() in _LABEL_FILES:
                    file = tar.extractfile(member)
                    assert file is not None
                    label = _label(name, f"{shard.name}/{member.name}", file.read())
                    if label is not None:
                        labels[key] = label
    except (tarfile.TarError, EOFError) as error:
        cut = "end of data" in str(error)
        rule = f"{shard.name} is cut off" if cut else f"{shard.name} is damaged or no tar file ({error})"
        raise FileError(name, rule, fix="copy or write it again") from error
    return [Sample(shard, *place, labels.get(key)) for key, place in images.items()]


def _label(name: str, title: str, content: bytes) -> int | None:
    """Class number in a label file; None where a JSON object has none."""
    try:
        value = json.loads(content)
    except ValueError:
        value = content.decode(errors="replace").strip()[:20]
    if isinstance(value, dict):
        named = [value[key] for key in ("cls", *LABEL_NAMES) if key in value]
        if not named:
            return None
        value = named[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FileError(name, f"{title} must be a class number from 0", got=str(value)[:20], fix="write the number")
    return value


def _common_size(samples: list[Sample], spread: Spread) -> Sides | None:
    chosen = samples[:: max(1, len(samples) // _SAMPLED)]
    sizes = {size for size in threaded(lambda one: size_of(_content(one)), chosen, spread) if size is not None}
    return sizes.pop() if len(sizes) == 1 else None


def open_shards(
    name: str, patterns: str, network: NetworkInput, options: ImageOptions, skip_bad: bool, recorded: Any = None,
    spread: Spread = alone,
) -> ImageSource:  # fmt: skip
    """Open the shards of ``TRAIN`` or ``TRAIN,test=TEST``; see :func:`decomp.data.sources.open_source`."""
    of_train, comma, of_test = patterns.partition(TEST)

    def scanned(pattern: str) -> list[Sample]:
        of_shards = threaded(lambda shard: samples_of(name, shard), shards_of(name, pattern), spread)
        samples = [one for of_shard in of_shards for one in of_shard]
        if not samples:
            raise FileError(name, f"{pattern} holds no images", fix=f"its files must end in {' '.join(SUFFIXES)}")
        return samples

    of_split = [scanned(pattern) for pattern in ((of_train, of_test) if comma else (of_train,))]

    def first() -> Image.Image:
        for one in of_split[0]:
            if not skip_bad or _can_be_read(one) or one is of_split[0][-1]:
                return read_image(_content(one))
        raise AssertionError

    prepared = prepare(name, options, network, lambda: _common_size(of_split[0], spread), first, recorded=recorded)
    splits = [ShardSplit(name, samples, prepared.preparation) for samples in of_split]
    skipped: list[str] = []
    if skip_bad:
        read = [split.without_unreadable(spread) for split in splits]
        splits, skipped = [split for split, _ in read], [title for _, bad in read for title in bad]
    labels = [one.label for samples in of_split for one in samples if one.label is not None]
    return ImageSource(
        name=name,
        input_shape=prepared.shape,
        n_classes=max(labels) + 1 if labels else None,
        class_names=None,
        train=splits[0],
        test=splits[1] if comma else None,
        normalisation=prepared.normalisation,
        augmentation=prepared.augmentation,
        preprocessing=prepared.description,
        prepared=prepared.record,
        skipped=tuple(skipped),
    )
