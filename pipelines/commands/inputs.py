"""Options that name a network and its images, as every command that may freeze a run takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ...data import image_options
from ..console.options import LEAST_IMAGES, LEAST_POINTS, OUTPUTS, FreezeOptions
from .shared import Choice, default_of, number, shared_options

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option(
        "--weights",
        metavar="FILE",
        help="safetensors or a torch state dict; DEFAULT for the weights of torchvision or timm, random for untrained "
        "ones.  [default: those of the zoo, or as your function returns them]",
    ),
    click.option(
        "--input-size", metavar="[CxHx]W",
        help="Size of one image where neither model nor data give it: 224, 28x28 or 3x224x224.  "
        "[default: theirs]",
    ),
    click.option(
        "--mean", metavar="X,…", type=lambda text: image_options.numbers("--mean", text),
        help="Mean of each channel, for pixel values from 0 to 1, such as 0.485,0.456,0.406; one number for all. Needs "
        "--std.  [default: the weights' own, else ImageNet's]",
    ),
    click.option(
        "--std", metavar="X,…", type=lambda text: image_options.numbers("--std", text),
        help="Standard deviation of each channel.  [default: as for --mean]",
    ),
    click.option(
        "--resize", metavar="S|HxW", type=lambda text: image_options.sides("--resize", text),
        help="Image files: resize the short side to S, or both sides to HxW.  [default: the weights' own, else none "
        "for images of one small size, else 256/224 of the input size]",
    ),
    click.option(
        "--crop", metavar="S|HxW", type=lambda text: image_options.sides("--crop", text),
        help="Image files: cut this size out of the middle, after --resize.  [default: the network's input size]",
    ),
    click.option(
        "--no-flip", "flip", flag_value=False, is_flag=True, default=True, show_default=False,
        help="Never mirror images, also in a later finetune.",
    ),
    click.option(
        "--transforms", metavar="FILE.py:FUNCTION",
        help="Image files: a function that returns your own transform (PIL image to tensor), in place of all these.  "
        "[default: none]",
    ),
    shared_options("part", "leaf"),
    click.option(
        "--outputs", type=Choice(OUTPUTS),
        help="Meaning of rows of numbers that the network returns: class scores, or values (embeddings, coordinates).  "
        "[default: scores where labels, a softmax or the class of the network say so]",
    ),
    number(
        "--images", "n_images", least=LEAST_IMAGES, default=default_of(FreezeOptions, "n_images"), show_default=True,
        help="Largest number of calibration images.",
    ),
    number(
        "--points", "n_points", least=LEAST_POINTS, default=default_of(FreezeOptions, "n_points"), show_default=True,
        help="Sampled output positions per image and layer.",
    ),
)  # fmt: skip


def network_and_images(function: Command) -> Command:
    """Add the options of ``freeze`` beside ``--model`` and ``--data``: weights, sizes, transforms, images, points."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
