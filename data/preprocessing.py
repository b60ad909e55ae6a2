"""Preprocessing of pictures: resize, centre crop, scale, mean and deviation, chosen from options, weights and sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from decomp.errors import FileError, UsageError

from .image_options import ImageOptions, shown
from .transforms import Normalisation, Shape, check_shape

Sides = tuple[int, int]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
NATIVE_SHAPE = (3, 224, 224)
#: Images of one common size up to this are taken as they are, where nothing asks for another size.
SMALL = 256
#: Origin of a mean and std that :attr:`NetworkInput.normalisation` gave, in words.
RUNS_OWN = "mean and std of the run's own images"
# The usual evaluation of ImageNet classifiers: short side to 256, the middle 224x224.
_MARGIN = 256 / 224


@dataclass(frozen=True)
class Preprocessing:
    """Steps from a picture to the input of a network.

    Parameters
    ----------
    crop : (H, W)
        Size of the result: the middle of the resized picture, or a window at a random place in training.
    resize : (H, W), optional
        None: the picture is not resized.
    stretch : bool
        Resize to `resize` exactly. Otherwise the picture keeps its shape and covers `resize`: where both sides are
        equal, the short side gets this length.
    interpolation : str
        One of :data:`INTERPOLATIONS`.
    mean, std : tuple of float
        For values from 0 to 1; one number, or one a channel.
    flip : bool
        Mirror with probability 1/2 in training.
    random_crop : bool
        In training the window is at a random place; False where there is no other place.
    origin : str
        Source of these values in words.
    """

    crop: Sides
    resize: Sides | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stretch: bool = False
    interpolation: str = "bilinear"
    flip: bool = True
    random_crop: bool = True
    origin: str = "as usual for ImageNet"

    def normalisation(self, n_channels: int) -> Normalisation:
        """The normalisation of 8-bit pixels of so many channels."""
        return Normalisation(255.0, self.mean, self.std).on_channels(n_channels)

    def describe(self) -> str:
        """The steps in one line, with those that are made in training only."""
        steps = []
        if self.resize is not None and self.stretch:
            steps.append(f"resized to {by(self.resize)} ({self.interpolation})")
        elif self.resize is not None:
            same = self.resize[0] == self.resize[1]
            target = f"short side resized to {self.resize[0]}" if same else f"resized to cover {by(self.resize)}"
            steps.append(f"{target} ({self.interpolation})")
        if self.random_crop:
            steps.append(f"centre {by(self.crop)}" + ("" if self.resize else ", not resized"))
        elif self.resize is None:
            steps.append(f"{by(self.crop)}, not resized")
        steps.append(f"mean {shown(self.mean)}, std {shown(self.std)}")
        training = ["cropped at a random place"] if self.random_crop else []
        training += ["mirrored at random"] if self.flip else []
        return f"{', '.join(steps)}; in training {' and '.join(training) or 'the same'}"

    def augmentation(self) -> str:
        """The steps in training, as text."""
        steps = ["crop at a random place of the resized image"] if self.random_crop else []
        steps += ["mirrored with probability 1/2"] if self.flip else []
        return ", ".join(steps) or "none"

    def to_json(self) -> dict[str, Any]:
        """The values as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any], name: str) -> Preprocessing:
        """Values out of a record.

        Raises
        ------
        FileError
            It is not one of such values.
        """
        try:
            pairs = {key: tuple(map(float, record[key])) for key in ("mean", "std")}
            crop, resize = record["crop"], record["resize"]
            made = cls(
                crop=(int(crop[0]), int(crop[1])),
                resize=None if resize is None else (int(resize[0]), int(resize[1])),
                stretch=bool(record["stretch"]), interpolation=str(record["interpolation"]), flip=bool(record["flip"]),
                random_crop=bool(record["random_crop"]), origin=str(record["origin"]), **pairs,
            )  # fmt: skip
            if made.interpolation not in INTERPOLATIONS or min(made.std) <= 0 or min(made.crop) < 1:
                raise ValueError
        except (KeyError, TypeError, ValueError, IndexError) as error:
            fix = "start a new run directory with freeze"
            raise FileError(name, "the record of its preprocessing cannot be read", fix=fix) from error
        return made


#: The usual evaluation of classifiers for ImageNet.
IMAGENET = Preprocessing((224, 224), (256, 256), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class NetworkInput:
    """Input that a network takes, as far as it is known.

    Parameters
    ----------
    shape : (C, H, W), optional
    fixed : bool
        `shape` was given by a person, with the weights, or by the class; otherwise it is only the usual one.
    channels : int, optional
        Input channels of the first convolution.
    own : Preprocessing, optional
        Of the weights.
    runs_on : callable, optional
        Whether the network runs on images of a shape.
    normalisation : Normalisation, optional
        That of a run's own images, for pixel values from 0 to 1; of images given as 8-bit or on a known scale it takes
        the place of every other one but that of the options.
    """

    shape: Shape | None = None
    fixed: bool = True
    channels: int | None = None
    own: Preprocessing | None = None
    runs_on: Callable[[Shape], bool] | None = None
    normalisation: Normalisation | None = None

    def choose_shape(self, name: str, native: Shape, sizes: Sequence[Sides]) -> Shape:
        """Shape in which images are given to the network.

        Parameters
        ----------
        name : str
            Of the images, for errors.
        native : (C, H, W)
            Of the images as they are.
        sizes : sequence of (H, W)
            Sizes to try, the preferred one first, where the network's is not fixed.

        Raises
        ------
        UsageError
            Images of these channels cannot be converted.
        """
        if self.shape is not None and self.fixed:
            return check_shape(name, native, self.shape)
        channels = [native[0]]
        if self.channels not in (None, native[0]) and {self.channels, native[0]} == {1, 3}:
            channels.append(self.channels or native[0])
        tried = [(count, *size) for size in sizes for count in channels]
        if self.runs_on is not None:
            fitting = next((shape for shape in tried if self.runs_on(shape)), None)
            if fitting is not None:
                return fitting
        if self.shape is not None:
            return check_shape(name, native, self.shape)
        return tried[0]


def by(size: Sequence[int]) -> str:
    """``(224, 192)`` as ``224×192``."""
    return "×".join(map(str, size))


def of_pictures(
    name: str, options: ImageOptions, network: NetworkInput, common: Sides | None
) -> tuple[Shape, Preprocessing]:
    """Shape and preprocessing of picture files.

    Parameters
    ----------
    name : str
        Of the images, for errors.
    options : ImageOptions
    network : NetworkInput
    common : (H, W), optional
        Size of all pictures, where it is one.

    Returns
    -------
    (C, H, W)
    Preprocessing

    Raises
    ------
    UsageError
        Options that fit neither the network's shape nor its channels.
    """
    own = network.own
    if options.size is not None:
        sizes = [options.size]
        if network.shape is not None and not network.fixed:
            network = replace(network, shape=(network.shape[0], *options.size), fixed=False)
    else:
        usual = (network.shape or NATIVE_SHAPE)[1:]
        sizes = ([common] if common is not None and max(common) <= SMALL else []) + [(usual[0], usual[1])]
    native = (3, *(common or sizes[0]))
    shape = network.choose_shape(name, native, sizes)
    if options.size is not None and shape[1:] != options.size:
        given = options.given("crop", "resize")[0]
        got = f"{given} {by(options.size)}"
        raise UsageError(name, f"the network takes images of {by(shape[1:])}", got=got, fix=f"leave {given} out")
    made = _resizing(own, shape, common, options, network.fixed and network.shape is not None)
    return shape, _values(made, shape, options, network.normalisation)


def _resizing(
    own: Preprocessing | None, shape: Shape, common: Sides | None, options: ImageOptions, fixed: bool
) -> Preprocessing:
    """How pictures come to the height and width of a shape; mean and std are still those of the basis."""
    height, width = shape[1:]
    basis = own or IMAGENET
    values: dict[str, Any] = {**vars(basis), "crop": (height, width)}
    if options.size is not None:
        if options.resize is None:
            values.update(resize=None, stretch=False)
        else:
            values.update(resize=(options.resize[0], options.resize[-1]), stretch=len(options.resize) == 2)
    elif common == (height, width) and (own is None or not fixed):
        values.update(resize=None, origin=f"the images' own size, otherwise {basis.origin}")
    elif own is None:
        values.update(resize=(round(height * _MARGIN), round(width * _MARGIN)))
    elif own.crop != (height, width) and own.resize is not None:
        ratios = own.resize[0] / own.crop[0], own.resize[1] / own.crop[1]
        values.update(resize=(math.floor(height * ratios[0] + 1e-6), math.floor(width * ratios[1] + 1e-6)))
    whole = common == (height, width) if values["resize"] is None else values["stretch"]
    whole = whole or common == (height, width) == values["resize"]
    values["random_crop"] = not whole or values["resize"] not in (None, (height, width))
    return Preprocessing(**values)


def _values(
    made: Preprocessing, shape: Shape, options: ImageOptions, normalisation: Normalisation | None
) -> Preprocessing:
    """The same with the mean, std and mirroring that options or a run ask for, and the origin in words."""
    values = {**vars(made), "flip": made.flip and options.flip}
    if options.mean is not None and options.std is not None:
        mean, std = channel_values(options, shape[0])
        if max(mean) > 1 or min(mean) < 0:
            rule = "is for pixel values from 0 to 1"
            raise UsageError("--mean", rule, got=shown(mean), fix="divide --mean and --std by 255")
        values.update(mean=mean, std=std)
    else:
        on_channels = (normalisation or made.normalisation(shape[0])).on_channels(shape[0])
        values.update(mean=on_channels.mean, std=on_channels.std)
        if normalisation is not None:
            values["origin"] = f"{RUNS_OWN}, otherwise {made.origin}"
    given = options.given("mean", "std", "resize", "crop", "flip")
    if given:
        rest = "" if {"--mean"} < set(given) and options.size else f", otherwise {values['origin']}"
        values["origin"] = f"by {', '.join(given)}{rest}"
    return Preprocessing(**values)


def channel_values(options: ImageOptions, n_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``--mean`` and ``--std``, one number for each channel.

    Raises
    ------
    UsageError
        So many numbers do not belong to so many channels.
    """
    found = []
    for name, numbers in (("--mean", options.mean or ()), ("--std", options.std or ())):
        if len(numbers) not in (1, n_channels):
            rule = "must be one number" + (f", or {n_channels} with commas" if n_channels > 1 else "")
            rule += f": the images have {n_channels} channel{'s' if n_channels > 1 else ''} here"
            raise UsageError(name, rule, got=shown(numbers))
        found.append(numbers * n_channels if len(numbers) == 1 else numbers)
    return found[0], found[1]
