"""Choice of the preparation of pictures: a user's transforms, recorded steps, or steps from options and the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from decomp.errors import FileError, UsageError

from .image_options import ImageOptions
from .pictures import Preparation, StandardPreparation
from .preprocessing import NetworkInput, Preprocessing, Sides, by, of_pictures
from .transforms import Normalisation, Shape
from .user_transforms import UserPreparation

#: Largest relative difference between the values of the first picture now and when it was recorded.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Prepared:
    """A preparation of pictures, and what is to be known of it.

    Attributes
    ----------
    preparation : Preparation
    shape : (C, H, W)
    normalisation : Normalisation
    augmentation : str
    description : str
        One line for a person.
    record : dict
        Plain data; with it, :func:`prepare` makes the same again.
    """

    preparation: Preparation
    shape: Shape
    normalisation: Normalisation
    augmentation: str
    description: str
    record: dict[str, Any]


def prepare(
    name: str,
    options: ImageOptions,
    network: NetworkInput,
    common: Callable[[], Sides | None],
    first: Callable[[], Image.Image],
    recorded: Mapping[str, Any] | None = None,
) -> Prepared:
    """Choose the preparation of pictures.

    Parameters
    ----------
    name : str
        Of the source, for errors.
    options : ImageOptions
    network : NetworkInput
    common : callable
        Height and width of all pictures, or None where they differ.
    first : callable
        The first picture, to try a user's transforms on.
    recorded : dict, optional
        The record of an earlier call, whose steps are taken.

    Raises
    ------
    UsageError, FileError, DecompError
    """
    if options.transforms is not None:
        return _by_user(name, options.transforms, network, first, recorded)
    if recorded is not None and network.shape is not None:
        shape, steps = network.shape, Preprocessing.from_json(recorded, name)
    else:
        shape, steps = of_pictures(name, options, network, common())
    description = f"{steps.describe()} ({steps.origin})"
    return Prepared(
        StandardPreparation(steps, shape), shape, steps.normalisation(shape[0]), steps.augmentation(), description,
        steps.to_json(),
    )  # fmt: skip


def _by_user(
    name: str, function: str, network: NetworkInput, first: Callable[[], Image.Image],
    recorded: Mapping[str, Any] | None,
) -> Prepared:  # fmt: skip
    n_channels = network.channels or (network.shape[0] if network.shape else 3)
    preparation = UserPreparation(function, "L" if n_channels == 1 else "RGB")
    try:
        image = first()
    except Exception as error:
        raise FileError(name, "its first image cannot be read", fix="mend it or give --skip-bad") from error
    image = image.convert(preparation.mode())
    shape = preparation.check(image)
    if network.shape is not None and network.fixed and network.shape != shape:
        rule = f"must give what the network takes, {by(network.shape)} (channels × height × width)"
        raise UsageError(function, rule, got=by(shape), fix="change its resize or crop, or --input-size")
    values = preparation.batch([preparation.one(image, False)], torch.tensor([0]), None)
    record = {"transforms": function, "first": [float(values.mean()), float(values.std()), float(values.abs().max())]}
    if recorded is not None:
        require_same_transforms(function, recorded.get("first"), record["first"])
    training = "its own transform" if preparation.augments else "the same"
    description = f"{by(shape)} by {function}; in training {training}"
    augmentation = f"transform train of {function}" if preparation.augments else "none"
    return Prepared(preparation, shape, Normalisation(1.0), augmentation, description, record)


def require_same_transforms(function: str, then: Any, now: Any) -> None:
    """Refuse a user's transforms that have changed since the images were recorded.

    Parameters
    ----------
    function : str
    then, now : list of float, or None
        ``first`` of the records: mean, deviation and largest size of the first image. None is not compared.

    Raises
    ------
    UsageError
    """
    if not isinstance(then, list) or not isinstance(now, list) or len(then) != len(now):
        return
    if any(abs(a - b) > _TOLERANCE * max(abs(a), abs(b), 1e-3) for a, b in zip(then, now)):
        rule = "gives other values for the first image than when the run was frozen"
        fix = "restore the function, or freeze into another --run"
        raise UsageError(function, rule, got=f"mean {now[0]:.4g}, it was {then[0]:.4g}", fix=fix)
