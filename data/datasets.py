"""Image source from torch's Datasets and DataLoaders: items are read by index when they are needed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from decomp.errors import DecompError, UsageError, kind_of

from .image_options import ImageOptions, shown
from .items import as_tensor, channels_first, class_number, described, images_of, labels_of
from .pictures import PictureSplit, Preparation, rgb
from .preparation import Prepared, prepare
from .preprocessing import SMALL, NetworkInput, Sides, by, channel_values
from .splits import ImageSource, Split
from .transforms import Normalisation, Shape, adapt
from .user_code import errors_in_one_line
from .user_transforms import drawing_from

_TEST = ("test", "val", "eval", "valid", "validation")
_DIGESTED = 32
_SIZED = 200


def is_dataset(thing: object) -> bool:
    """Whether this is a Dataset or a DataLoader."""
    return isinstance(thing, (Dataset, DataLoader))


def splits_in(result: Any) -> dict[str, Any] | None:
    """``{"train": …, "test": …, "mean": …}`` where a function returned Datasets or DataLoaders; None otherwise."""
    if is_dataset(result):
        return {"train": result}
    if isinstance(result, (tuple, list)) and len(result) == 2 and all(map(is_dataset, result)):
        return {"train": result[0], "test": result[1]}
    if isinstance(result, Mapping) and is_dataset(result.get("train")):
        test = next((result[key] for key in _TEST if result.get(key) is not None), None)
        others = {key: result[key] for key in ("mean", "std", "class_names") if result.get(key) is not None}
        return {"train": result["train"], **({} if test is None else {"test": test}), **others}
    return None


class Items:
    """Items of a Dataset or DataLoader by index: images and labels, in whatever form they come.

    Parameters
    ----------
    name : str
        Of the source, for errors.
    data : Dataset or DataLoader
        Of a DataLoader its data set, the indices of its sampler, and its own ``collate_fn`` are used.
    """

    def __init__(self, name: str, data: Any) -> None:
        self.name = name
        self._collate: Callable[[list[Any]], Any] | None = None
        if isinstance(data, DataLoader):
            own = data.collate_fn
            self._collate = None if own in (None, default_collate) else own
            indices = getattr(data.sampler, "indices", None)
            data = data.dataset if indices is None else Subset(data.dataset, list(indices))
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            rule = "its data set must be read by index (__len__ and __getitem__)"
            raise UsageError(name, rule, got=kind_of(data), fix="collect its images into one array")
        self.data = data
        self._lock = threading.Lock()
        self._labels: dict[int, Any] = {}
        if len(self) == 0:
            raise UsageError(name, "must hold images", got="none")

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int, seed: int = 0, number: int | None = None) -> tuple[Any, Any]:
        """Image and label of one item; random steps of the data set depend on (seed, number), by default its index."""
        # One at a time: random numbers are those of the process, and the data set is another's code.
        with self._lock, errors_in_one_line(self.name), drawing_from(seed, index if number is None else number):
            item = self.data[index]
            if self._collate is not None:
                item = self._collate([item])
        place, image = images_of(item, 3 if self._collate is None else 4, self.name)
        label = labels_of(item, place)
        if self._collate is not None:
            image = image[0]
            label = label[0] if isinstance(label, (Tensor, np.ndarray, list, tuple)) and len(label) else label
        self._labels[index] = label
        return image, label

    def leave_out_bad(self) -> list[int]:
        """Leave out the items that cannot be read or hold NaN or infinite values; returns their indices.

        Raises
        ------
        UsageError
            There are no others.
        """
        good = [self._is_good(index) for index in range(len(self))]
        if not any(good):
            rule, fix = "must hold images that can be read", "leave --skip-bad out to see what is wrong with the first"
            raise UsageError(self.name, rule, got=f"{len(good)} items that cannot be", fix=fix)
        if not all(good):
            self.data, self._labels = Subset(self.data, np.flatnonzero(good).tolist()), {}
        return [index for index, kept in enumerate(good) if not kept]

    def _is_good(self, index: int) -> bool:
        try:
            image, _ = self.read(index)
        except DecompError:
            return False
        if not isinstance(image, (Tensor, np.ndarray)):
            return True
        pixels = torch.as_tensor(image)
        return not pixels.is_floating_point() or bool(torch.isfinite(pixels).all())

    def labels(self, indices: Tensor) -> list[Any]:
        """Labels as they are; items that have not been read yet are read for them."""
        return [self._labels[i] if i in self._labels else self.read(i)[1] for i in indices.tolist()]

    def class_numbers(self) -> Tensor | None:
        """Class numbers of all items where the data set lists them (``targets``, ``labels``, tensors), else None."""
        found = _listed(self.data)
        first = class_number(self.labels(torch.tensor([0]))[0])
        if found is None or found.shape != (len(self),) or first is None or int(found[0]) != first:
            return None
        return found if int(found.min()) >= 0 else None

    def digest(self, labels: bool) -> str:
        """SHA-256 (hex) over the number of items and 32 of them; reading all could take hours."""
        sha = hashlib.sha256(str(len(self)).encode())
        for index in np.linspace(0, len(self) - 1, min(len(self), _DIGESTED)).astype(int).tolist():
            image, label = self.read(index)
            sha.update(np.ascontiguousarray(as_tensor(image).numpy()).tobytes())
            sha.update(str(class_number(label) if labels else None).encode())
        return sha.hexdigest()


def _listed(data: Any) -> Tensor | None:
    if isinstance(data, Subset):
        whole = _listed(data.dataset)
        return None if whole is None else whole[torch.as_tensor(list(data.indices))]
    candidates = [getattr(data, key, None) for key in ("targets", "labels")]
    if isinstance(data, TensorDataset):
        candidates += data.tensors[1:2]
    for found in candidates:
        try:
            numbers = torch.as_tensor(found)
        except (TypeError, ValueError, RuntimeError):
            continue
        if numbers.dim() == 1 and not numbers.is_floating_point():
            return numbers.long()
    return None


class _Labelled:
    """Labels of the items as a split gives them."""

    def __init__(self, items: Items, use: bool) -> None:
        self.items = items
        self.labelled = use and class_number(items.labels(torch.tensor([0]))[0]) is not None
        self.listed = items.class_numbers() if self.labelled else None

    def of(self, indices: Tensor) -> Tensor | None:
        if not self.labelled:
            return None
        if self.listed is not None:
            return self.listed[indices]
        numbers = []
        for index, label in zip(indices.tolist(), self.items.labels(indices)):
            number = class_number(label)
            if number is None:
                got = f"{described(label)} in item {index}"
                raise DecompError(self.items.name, "every label must be a class number from 0", got=got)
            numbers.append(number)
        return torch.tensor(numbers, dtype=torch.int64)


class _ItemSplit(Split):
    """Split of the items of a Dataset, with the labels that come with them."""

    _items: Items
    _numbers: _Labelled

    def __len__(self) -> int:
        return len(self._items)

    @property
    def has_labels(self) -> bool:
        """Whether the images have class numbers."""
        return self._numbers.labelled

    def labels(self, indices: Any) -> Tensor | None:
        """Class numbers, int64, shape (m,); None where the split has no labels."""
        return self._numbers.of(torch.as_tensor(indices, dtype=torch.int64).reshape(-1))

    def digest(self) -> str:
        """SHA-256 (hex) of a sample of the items."""
        return self._items.digest(self.has_labels)


class TensorItems(_ItemSplit):
    """Split of a Dataset whose items are tensors or arrays.

    Parameters
    ----------
    items : Items
    labels : bool
        Use the labels.
    shape : (C, H, W)
        Shape that a model takes.
    normalisation : Normalisation
        Of the items' channels.
    """

    def __init__(self, items: Items, labels: bool, shape: Shape, normalisation: Normalisation) -> None:
        self._items, self._numbers, self._shape = items, _Labelled(items, labels), shape
        self._scale, self._normalisation = normalisation.scale, normalisation.on_channels(shape[0])

    def _load(self, indices: Tensor, augment_seed: int | None, numbers: Tensor) -> Tensor:
        seed, pairs = 0 if augment_seed is None else augment_seed + 1, zip(indices.tolist(), numbers.tolist())
        images = [channels_first(as_tensor(self._items.read(index, seed, number)[0])) for index, number in pairs]
        kinds = list(dict.fromkeys((tuple(image.shape), image.dtype) for image in images))
        if len(kinds) > 1:
            got = " and ".join(f"{by(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in kinds[:2])
            fix = "give the data set a transform that resizes or crops to one size"
            raise UsageError(self._items.name, "all images must be of one shape", got=got, fix=fix)
        pixels = torch.stack(images).float().div_(self._scale)
        return self._normalisation.shift(adapt(pixels, self._shape))


class PictureItems(_ItemSplit, PictureSplit):
    """Split of a Dataset whose items are PIL images, or arrays (H, W, 3) of bytes."""

    def __init__(self, items: Items, labels: bool, preparation: Preparation) -> None:
        super().__init__(items.name, None, preparation)
        self._items, self._numbers = items, _Labelled(items, labels)

    def picture(self, index: int, mode: str) -> Image.Image:
        """One picture in mode L or RGB."""
        return _as_picture(self._items.read(index)[0]).convert(mode)

    def title(self, index: int) -> str:
        """Number of the item."""
        return f"item {index}"


def _is_picture(image: Any) -> bool:
    if isinstance(image, Image.Image):
        return True
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def _as_picture(image: Any) -> Image.Image:
    return rgb(image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image)))


@dataclass(frozen=True)
class _Opened:
    """Splits and what is done to their images."""

    train: Split
    test: Split | None
    shape: Shape
    normalisation: Normalisation
    augmentation: str
    description: str
    record: dict[str, Any] | None


def open_datasets(
    name: str,
    parts: Mapping[str, Any],
    network: NetworkInput,
    options: ImageOptions,
    recorded: Mapping[str, Any] | None = None,
    use_labels: bool = True,
    skip_bad: bool = False,
) -> ImageSource:
    """Source of Datasets or DataLoaders.

    Parameters
    ----------
    name : str
    parts : dict
        As :func:`splits_in` gives it.
    network, options, recorded
        As for :func:`decomp.data.sources.open_source`.
    use_labels : bool
        False: labels are ignored.
    skip_bad : bool
        Read every item once, and leave out those that cannot be read or hold NaN or infinite values.

    Raises
    ------
    UsageError, DecompError
    """
    train = Items(name, parts["train"])
    test = Items(name, parts["test"]) if "test" in parts else None
    names = parts.get("class_names") or getattr(train.data, "classes", None)
    skipped = [f"{key} item {place}" for key, items in (("train", train), ("test", test))
               for place in (items.leave_out_bad() if skip_bad and items is not None else ())]  # fmt: skip
    image, label = train.read(0)
    if ("mean" in parts) != ("std" in parts):
        raise DecompError(name, "mean and std come together", got="one of them", fix="give both or neither")
    if "mean" in parts and options.mean is None and not _as_in_the_run(image, network):
        mean, std = (tuple(np.asarray(parts[key], float).reshape(-1).tolist()) for key in ("mean", "std"))
        options = ImageOptions(mean, std, options.resize, options.crop, options.flip, options.transforms)
    opened = (_pictures if _is_picture(image) else _tensors)(train, test, image, network, options, recorded, use_labels)
    ignored = None
    if use_labels and label is not None and class_number(label) is None:
        ignored = described(label)
    listed = [split._numbers.listed for split in (opened.train, opened.test) if split is not None]  # type: ignore[attr-defined]
    n_classes = max((int(numbers.max()) + 1 for numbers in listed if numbers is not None), default=None)
    if isinstance(names, Sequence) and opened.train.has_labels and len(names) >= (n_classes or 0):
        n_classes = len(names)
    return ImageSource(
        name=name, input_shape=opened.shape, n_classes=n_classes if use_labels else None,
        class_names=tuple(map(str, names)) if isinstance(names, Sequence) and len(names) == n_classes else None,
        train=opened.train, test=opened.test, normalisation=opened.normalisation, augmentation=opened.augmentation,
        preprocessing=opened.description, prepared=opened.record, labels_ignored=ignored, skipped=tuple(skipped),
    )  # fmt: skip


def _as_in_the_run(image: Any, network: NetworkInput) -> bool:
    """Whether the images are normalised as those of a run, since they are pictures or 8-bit numbers."""
    return network.normalisation is not None and (_is_picture(image) or as_tensor(image).dtype == torch.uint8)


def _pictures(
    train: Items, test: Items | None, image: Any, network: NetworkInput, options: ImageOptions,
    recorded: Mapping[str, Any] | None, use_labels: bool,
) -> _Opened:  # fmt: skip
    def common() -> Sides | None:
        indices = range(0, len(train), max(1, len(train) // _SIZED))
        sizes = {_as_picture(train.read(index)[0]).size for index in indices}
        width, height = sizes.pop()
        return None if sizes else (height, width)

    made: Prepared = prepare(train.name, options, network, common, lambda: _as_picture(image), recorded)
    splits = [None if items is None else PictureItems(items, use_labels, made.preparation) for items in (train, test)]
    assert splits[0] is not None
    return _Opened(
        splits[0], splits[1], made.shape, made.normalisation, made.augmentation, made.description, made.record
    )


def _tensors(
    train: Items, test: Items | None, image: Any, network: NetworkInput, options: ImageOptions,
    recorded: Mapping[str, Any] | None, use_labels: bool,
) -> _Opened:  # fmt: skip
    first = channels_first(as_tensor(image))
    if first.dtype != torch.uint8 and not first.is_floating_point():
        raise UsageError(train.name, "images must be uint8 (0 to 255) or floating point", got=first.dtype)
    if unused := options.given("resize", "crop", "transforms"):
        rule = "is for image files and for data sets of pictures"
        fix = "change the transform of the data set, or give --input-size"
        raise UsageError(unused[0], rule, got=f"{train.name}, whose items are tensors", fix=fix)
    channels, height, width = native = (first.shape[0], first.shape[1], first.shape[2])
    usual = (network.shape[1], network.shape[2]) if network.shape is not None else (height, width)
    sizes = [(height, width)] if max(height, width) <= SMALL else []
    shape = network.choose_shape(train.name, native, [*sizes, usual])
    mean, std = ((), ()) if options.mean is None else channel_values(options, channels)
    if options.mean is None and network.normalisation is not None and first.dtype == torch.uint8:
        own = network.normalisation.on_channels(shape[0])
        mean, std = own.mean, own.std
    normalisation = Normalisation(255.0 if first.dtype == torch.uint8 else 1.0, mean, std)
    again = [channels_first(as_tensor(train.read(0, seed)[0])) for seed in (1, 2)]
    moves = any(other.shape != first.shape or not torch.equal(other, first) for other in again)
    splits = [None if it is None else TensorItems(it, use_labels, shape, normalisation) for it in (train, test)]
    assert splits[0] is not None
    steps = ["as the data set gives them" + (", its random steps drawn once for each image" if moves else "")]
    steps += [f"{by(native)} made {by(shape)}"] if native != shape else []
    steps += ["divided by 255"] if normalisation.scale != 1 else []
    steps += [f"mean {shown(mean)}, std {shown(std)}"] if mean else []
    training = "its random steps drawn anew" if moves else "the same"
    return _Opened(
        splits[0], splits[1], shape, normalisation, training if moves else "none",
        f"{', '.join(steps)}; in training {training}", None,
    )  # fmt: skip
