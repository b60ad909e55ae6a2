"""Preprocessing of a set of weights: torchvision's transforms, timm's configuration, the zoo's data set."""

from __future__ import annotations

import math
import os
from typing import Any

from torch import nn

from . import standard, zoo
from .preprocessing import IMAGENET, INTERPOLATIONS, Preprocessing
from .weights import read_preprocessing

#: timm's words for resize modes that do not keep the shape of a picture.
_STRETCHED = ("squash",)


def of_weights(
    kind: str, network: str, weights: str | os.PathLike[str] | None, module: nn.Module
) -> Preprocessing | None:
    """Preprocessing of the weights that a network was given; None where they bring none.

    Parameters
    ----------
    kind : str
        ``zoo``, ``torchvision``, ``timm``, or anything else for a user's function.
    network : str
        Name behind the colon.
    weights : path or str, optional
        As given to :func:`decomp.data.models.load_model`.
    module : nn.Module
        The network.
    """
    recorded = None if weights is None else read_preprocessing(weights)
    if recorded is not None:
        return Preprocessing.from_json({**recorded, "origin": "as recorded with the weights"}, str(weights))
    if kind == "zoo":
        return of_zoo(network)
    if kind == "torchvision":
        return of_torchvision(network, str(weights))
    if kind == "timm":
        return of_timm(network, getattr(module, "pretrained_cfg", None) or {})
    return None


def of_zoo(network: str) -> Preprocessing | None:
    """Normalisation of the data set that a network of the zoo is trained on, without a margin around the crop."""
    entry = zoo.find(network)
    normalisation = standard.NORMALISATIONS.get(entry.dataset)
    if normalisation is None:
        return None
    size = (entry.input_shape[1], entry.input_shape[2])
    return Preprocessing(
        size, size, normalisation.mean, normalisation.std, flip=entry.dataset not in standard.NOT_MIRRORED,
        origin=f"as zoo:{network} was trained",
    )  # fmt: skip


def of_torchvision(network: str, weights: str) -> Preprocessing | None:
    """Transforms of a set of torchvision's weights by its name; None for a file or random weights."""
    from torchvision import models

    members = models.get_model_weights(network).__members__
    own = {key.lower(): member for key, member in members.items()}.get(weights.lower())
    return None if own is None else from_preset(own.transforms(), f"as torchvision's {own.name} asks")


def from_preset(preset: Any, origin: str) -> Preprocessing | None:
    """Values of torchvision's preset of transforms for classification; None for another object."""
    try:
        crop, resize = _pair(preset.crop_size), _pair(preset.resize_size)
        mean, std = tuple(map(float, preset.mean)), tuple(map(float, preset.std))
        interpolation = _interpolation(preset.interpolation.value)
    except (AttributeError, TypeError, ValueError, IndexError):
        return None
    return Preprocessing(crop, resize, mean, std, len(preset.resize_size) == 2, interpolation, origin=origin)


def of_timm(network: str, config: Any) -> Preprocessing | None:
    """Values of timm's configuration of a network; None where it has none."""
    if not config.get("mean") or not config.get("std"):
        return None
    _, height, width = config.get("input_size") or (3, 224, 224)
    share = float(config.get("crop_pct") or 0.875)
    padded = share > 1 or config.get("crop_mode") == "border"
    share = min(share, 1.0)
    # As timm.data.create_transform: the resized picture is larger than the crop by 1 / crop_pct, rounded down.
    resize = (math.floor(height / share), math.floor(width / share))
    return Preprocessing(
        (height, width), resize, tuple(map(float, config["mean"])), tuple(map(float, config["std"])),
        stretch=config.get("crop_mode") in _STRETCHED, interpolation=_interpolation(config.get("interpolation")),
        origin=f"as timm's {network} asks" + (", without its black border" if padded else ""),
    )  # fmt: skip


def _interpolation(name: Any) -> str:
    return name if name in INTERPOLATIONS else IMAGENET.interpolation


def _pair(size: Any) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else list(size)
    return int(sides[0]), int(sides[-1])
