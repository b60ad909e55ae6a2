"""Commands that make something: freeze, finetune, train, demo."""

from __future__ import annotations

from typing import Any

import click

from decomp.errors import UsageError

from ..console.finetune_options import BATCH_SIZES, FINETUNE_EPOCHS, LABELS, FinetuneOptions
from ..console.options import SCHEDULES
from .group import main
from .inputs import network_and_images
from .scheme_options import scheme_options
from .shared import (
    DATA_HELP,
    MODEL_HELP,
    Choice,
    begin,
    default_of,
    given,
    number,
    open_run,
    own_file,
    reporter_without_run,
    shared_options,
    show,
)  # fmt: skip


@main.command(
    epilog="""\b
Examples:
  decomp freeze --model zoo:vgg-digits --data digits --run runs/vgg
  decomp freeze --model torchvision:vgg16 --weights DEFAULT --data imagefolder:photos --run runs/vgg16
  decomp freeze --model nets.py:build --weights net.pth --data imagefolder:photos --run runs/mine \
      --resize 256 --crop 224 --mean 0.5 --std 0.5
  decomp freeze --model nets.py:build --weights net.pth --data nets.py:images --run runs/mine
"""
)
@click.option("--model", metavar="NAME", help=MODEL_HELP + "  [default: the one trained in the run]")
@click.option(
    "--data", metavar="NAME",
    help=DATA_HELP + " Only training images are used.  [default: those of the training in the run]",
)  # fmt: skip
@shared_options("run")
@network_and_images
@click.option(
    "--no-mix",
    "mix",
    flag_value=False,
    is_flag=True,
    default=True,
    show_default=False,
    help="Record the given images alone, not also mixtures of two where there are fewer than 1,000.",
)
@number("--batch-size", default=100, show_default=True, help="Largest number of images per batch.")
@shared_options("memory", "seed", "device", "skip-bad", "verbose", "common")
def freeze(run: str, threads: int | None, quiet: bool, **options: Any) -> None:
    """Record the layer outputs of the original network.

    The outputs at sampled positions (frozen points) are the targets of all later fits. Weights are not changed.
    """
    begin(threads)
    from ..stages.freeze import freeze as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter, **options))


@main.command(
    epilog="""\b
Examples:
  decomp finetune --run runs/vgg
  decomp finetune --run runs/vgg --labels none --minutes 5
  decomp finetune --run runs/vgg --distill --lr 0.005 --schedule constant
"""
)
@shared_options("run")
@number(
    "--epochs",
    help=f"Passes over the training images.  [default: {FINETUNE_EPOCHS}, unless --minutes is given]",
)
@number(
    "--minutes", least=0, kind=float, above=True,
    help="Instead of --epochs: as many as fit into this time.  [no default]",
)  # fmt: skip
@number(
    "--lr", "--learning-rate", "learning_rate", least=0, kind=float, above=True,
    default=default_of(FinetuneOptions, "learning_rate"), show_default=True, help="Highest learning rate.",
)  # fmt: skip
@number(
    "--batch-size", help=f"Images per batch.  [default: {BATCH_SIZES['train']}, without labels {BATCH_SIZES['none']}]"
)
@click.option(
    "--schedule", type=Choice(SCHEDULES), default=default_of(FinetuneOptions, "schedule"), show_default=True,
    help="Learning rate after the warm-up.",
)  # fmt: skip
@click.option(
    "--labels", type=Choice(LABELS), default=default_of(FinetuneOptions, "labels"), show_default=True,
    help="Train on the labels of the training images, or, with none, on the original's outputs for training images "
    "and, where they are few, for mixtures of them.",
)  # fmt: skip
@click.option(
    "--data", metavar="NAME", help="With --labels none: other images to train on, of any source.  [default: the run's]"
)
@number("--images", "n_images", help="With --labels none: at most so many images.  [default: all]")
@click.option("--distill", is_flag=True, help="With labels: follow the original's outputs as well.")
@number(
    "--weight-decay", least=0, kind=float, default=default_of(FinetuneOptions, "weight_decay"), show_default=True,
    help="Weight decay of kernels and matrices.",
)  # fmt: skip
@shared_options("precision", "memory", "redo", "seed", "device", "verbose", "common")
def finetune(run: str, threads: int | None, quiet: bool, **options: Any) -> None:
    """Fine-tune the decomposed network.

    An interrupted training continues after the last finished epoch.
    """
    begin(threads)
    from ..stages.finetune import finetune as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter, **options))


@main.command(
    epilog="""\b
Examples:
  decomp train --model zoo:vgg-fashion --data fashion-mnist --out vgg.safetensors
  decomp train --model zoo:vgg-fashion --data fashion-mnist --run runs/vgg
  decomp train --model zoo:vgg-fashion --data fashion-mnist --run runs/slim --sparsity 1e-3
  decomp train --model zoo:c3-32 --run runs/repr --scheme repr --s1 20 --s2 10 --drop 0.3 --epochs 100
"""
)
@click.option("--model", required=True, metavar="NAME", help=MODEL_HELP)
@click.option("--data", metavar="NAME", help=DATA_HELP + "  [default for zoo networks: their own]")
@click.option(
    "--out",
    metavar="FILE",
    help="File for the weights; a JSON record is written beside it.  [default: NAME.safetensors]",
)
@click.option(
    "--run", type=click.Path(), metavar="DIR",
    help="Instead of --out: train in a run directory, for the other commands.  [default: none]",
)  # fmt: skip
@number("--epochs", help="Passes over the training images.  [default: the zoo's recipe, otherwise 20]")
@number(
    "--lr", "--learning-rate", "learning_rate", least=0, kind=float, above=True,
    help="Highest learning rate.  [default: the zoo's recipe, otherwise 0.05]",
)  # fmt: skip
@number("--batch-size", help="Images per batch.  [default: the zoo's recipe, otherwise 128]")
@scheme_options
@shared_options("precision", "memory", "redo", "seed", "device", "verbose", "common")
def train(threads: int | None, quiet: bool, model: str, **options: Any) -> None:
    """Train a network from scratch.

    An interrupted training continues after the last finished epoch.
    """
    begin(threads)
    from ..stages.train import train as stage

    if options["run"] is None:
        reporter, out = reporter_without_run(quiet), own_file(options["out"], model)
        show(stage(model, reporter=reporter, **given({**options, "out": out})))
        return
    directory, reporter = open_run(options["run"], quiet)
    options["run"] = str(directory)
    show(stage(model, reporter=reporter, **given(options)))


@main.command(
    epilog="""\b
Examples:
  decomp demo
  decomp demo masked --data fashion-mnist
  decomp demo tasks
"""
)
@click.argument("kind", type=Choice(("stages", "masked", "tasks")), default="stages")
@click.option("--run", default="runs/demo", show_default=True, metavar="DIR", help="Run directory for its files.")
@click.option(
    "--data", metavar="NAME",
    help="Images of the masked demo, resized to 28x28 grey pixels; see `decomp freeze --help`.  [default: digits]",
)  # fmt: skip
@shared_options("verbose", "common")
def demo(kind: str, run: str, data: str | None, threads: int | None, quiet: bool) -> None:
    """Run all stages on a small shipped network.

    Nothing is downloaded. `demo masked` trains an MLP and a ConvNet instead, removes three quarters of their parameters
    by the norms of their filters, trains them on, and trains networks of the small size from random weights; it writes
    nothing. `demo tasks` learns five tasks of two digits each in one network.
    """
    if kind == "masked":
        if click.get_current_context().get_parameter_source("run") is not click.core.ParameterSource.DEFAULT:
            raise UsageError("--run", "has no effect on the masked demo, which writes nothing", fix="leave it out")
        begin(threads)
        from ..recipes.masked import masked

        show(masked(reporter=reporter_without_run(quiet), **given({"data": data})))
        return
    if kind == "tasks" and data is None:
        begin(threads)
        from ..recipes.task_demo import task_demo

        given_run = click.get_current_context().get_parameter_source("run") is click.core.ParameterSource.COMMANDLINE
        directory, reporter = open_run(run if given_run else f"{run}-tasks", quiet)
        show(task_demo(directory, reporter=reporter))
        return
    if data is not None:
        rule = "has no effect on this demo, which has its own images"
        raise UsageError("--data", rule, fix="leave it out, or write `demo masked`")
    begin(threads)
    from ..recipes.demo import demo as recipe

    directory, reporter = open_run(run, quiet)
    show(recipe(directory, reporter=reporter))
