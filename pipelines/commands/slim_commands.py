"""Command of network slimming: slim."""

from __future__ import annotations

from typing import Any

import click

from ..console import parse
from ..console.finetune_options import FINETUNE_EPOCHS, FinetuneOptions
from ..console.options import LEAST_IMAGES, TRAIN_SCHEDULES
from .group import main
from .shared import DATA_HELP, MODEL_HELP, Choice, begin, default_of, number, open_run, shared_options, show


@main.command(
    epilog="""\b
Examples:
  decomp slim --model zoo:vgg-bn --data fashion-mnist --run runs/slim --passes 3 --sparsity 1e-3
"""
)
@click.option("--model", required=True, metavar="NAME", help=MODEL_HELP)
@click.option("--data", metavar="NAME", help=DATA_HELP + "  [default for zoo networks: their own]")
@shared_options("run")
@number("--passes", default=3, show_default=True, help="Number of passes, each with a run directory beside --run.")
@number(
    "--sparsity", least=0, kind=float, above=True, default=1e-4, show_default=True,
    help="Weight of the sum of the absolute scale factors in each training.",
)  # fmt: skip
@click.option("--proximal", is_flag=True, help="A soft threshold after each step, which gives exact zeros.")
@click.option(
    "--ratio", type=parse.share_below_one("--ratio"), default=0.5, show_default=True, metavar="SHARE",
    help="Share of the channels that each pruning removes.",
)  # fmt: skip
@number(
    "--cap", least=0, kind=float, most=1, metavar="SHARE", default=0.5, show_default=True,
    help="Largest share of its channels that a layer loses in a pass.",
)  # fmt: skip
@number(
    "--floor", least=0, kind=float, most=1, metavar="SHARE",
    help="Share of its channels that each layer keeps at least.  [default: 0.1]",
)  # fmt: skip
@click.option(
    "--remove-branches", is_flag=True,
    help="A residual branch may lose all channels of a layer, without --floor and --cap; it then goes as a whole.",
)  # fmt: skip
@number("--epochs", help="Epochs of each training.  [default: the zoo's recipe, otherwise 20]")
@number(
    "--lr", "--learning-rate", "learning_rate", least=0, kind=float, above=True,
    help="Highest learning rate of each training.  [default: the zoo's recipe, otherwise 0.05]",
)  # fmt: skip
@number("--batch-size", help="Images per batch.  [default: the zoo's recipe, otherwise 128]")
@click.option(
    "--schedule", type=Choice(TRAIN_SCHEDULES),
    help="Learning rate of each training, as for train.  [default: the zoo's recipe, otherwise cosine]",
)  # fmt: skip
@number(
    "--tune-epochs", default=FINETUNE_EPOCHS, show_default=True,
    help="Epochs of each fine-tuning.",
)  # fmt: skip
@number(
    "--tune-lr", "tune_learning_rate", least=0, kind=float, above=True,
    default=default_of(FinetuneOptions, "learning_rate"), show_default=True,
    help="Highest learning rate of each fine-tuning.",
)  # fmt: skip
@number(
    "--images", "n_images", least=LEAST_IMAGES, default=500, show_default=True,
    help="Images on which outputs are compared with the unpruned network's.",
)  # fmt: skip
@shared_options("seed", "device", "verbose", "common")
def slim(run: str, threads: int | None, quiet: bool, model: str, **options: Any) -> None:
    """Train sparsely, prune by scale factors, fine-tune, and again.

    Network slimming in several passes. An interrupted call goes on where it was stopped.
    """
    begin(threads)
    from ..recipes.slim import slim as recipe

    directory, reporter = open_run(run, quiet)
    show(recipe(directory, model, reporter=reporter, **options))
