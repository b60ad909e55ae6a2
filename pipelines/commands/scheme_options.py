"""Options of ``train`` for its schedule and for training schemes."""

from __future__ import annotations

from typing import Any

import click

from decomp.schemes.repr_settings import METHODS, NEXT_SLICES, ORDERS, SCALES, ReprSettings

from ..console.options import TRAIN_SCHEDULES, TRAINING_SCHEMES, TrainOptions
from .shared import Choice, Command, default_of, number


def _default(name: str) -> str:
    return f"  [default: {default_of(ReprSettings, name)}]"


#: In the order of the help.
OPTIONS: tuple[Any, ...] = (
    click.option(
        "--schedule", type=Choice(TRAIN_SCHEDULES),
        help="Learning rate after the warm-up; milestones: a tenth after half and a hundredth after three quarters of "
        "the epochs.  [default: the zoo's recipe, otherwise cosine]",
    ),
    number(
        "--sparsity", least=0, kind=float, above=True,
        help="Network slimming: weight of the sum of the absolute scale factors that prune --criterion bn-scale can "
        "rank, such as 1e-4.  [default: none]",
    ),
    click.option(
        "--proximal", is_flag=True, help="With --sparsity: a soft threshold after each step, which gives exact zeros."
    ),
    click.option(
        "--scheme", type=Choice(TRAINING_SCHEMES), default=default_of(TrainOptions, "scheme"), show_default=True,
        help="Training scheme; repr drops overlapping filters for some epochs and brings them back orthogonal.",
    ),
    number("--s1", help="With repr: epochs of the full network before each drop." + _default("s1")),
    number("--s2", help="With repr: epochs of the smaller network after each drop." + _default("s2")),
    number(
        "--drop", kind=float, least=0, above=True, metavar="SHARE",
        help="With repr: share of all filters to drop." + _default("drop"),
    ),
    number("--cycles", help="With repr: most drops; fewer where the epochs end." + _default("cycles")),
    number(
        "--min-keep", kind=float, least=0, metavar="SHARE",
        help="With repr: share of each layer's filters that stays." + _default("min_keep"),
    ),
    click.option(
        "--first", is_flag=True, default=None, help="With repr: drop filters of layers that read the image too."
    ),
    click.option(
        "--coupled", is_flag=True, default=None,
        help="With repr: drop channels that several layers write too, such as those of residual streams, as a whole.",
    ),
    click.option("--order", type=Choice(ORDERS), help="With repr: filters to drop first." + _default("order")),
    click.option("--reinit", "method", type=Choice(METHODS), help="With repr: new filters." + _default("method")),
    click.option("--scale", type=Choice(SCALES), help="With repr: scale of new filters." + _default("scale")),
    click.option(
        "--next", "next_slice", type=Choice(NEXT_SLICES),
        help="With repr: weights with which the next layer reads a filter that comes back." + _default("next_slice"),
    ),
)  # fmt: skip


def scheme_options(function: Command) -> Command:
    """Add the options to a command."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function
