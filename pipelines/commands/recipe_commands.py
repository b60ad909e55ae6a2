"""Commands of published experiments: recipe imagenet."""

from __future__ import annotations

from typing import Any

import click

from ..console.options import LEAST_IMAGES, FreezeOptions
from .group import main
from .shared import begin, default_of, number, open_run, shared_options, show


@main.group(invoke_without_command=True)
@click.pass_context
def recipe(ctx: click.Context) -> None:
    """Repeat a published experiment, and compare with its figures."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@recipe.command(
    epilog="""\b
Examples:
  decomp recipe imagenet --data imagefolder:/data/imagenet --run runs/imagenet
  decomp recipe imagenet --data imagefolder:/data/imagenet --run runs/imagenet --network vgg16 --epochs 0
"""
)
@click.option("--data", required=True, metavar="NAME", help="Images: imagefolder:DIR, with labelled train/ and val/.")
@click.option(
    "--run", required=True, type=click.Path(), metavar="DIR",
    help="Folder for the run directories, one for each network and speed-up.",
)  # fmt: skip
@click.option(
    "--network", "networks", multiple=True, metavar="NAME", default=("vgg16", "resnet50"), show_default=True,
    help="Network: vgg16 (2x, 4x, 5x), resnet50 (2x), or another one with its speed-ups, such as "
    "torchvision:vgg11=2x/4x; can be given several times.",
)  # fmt: skip
@click.option(
    "--weights", metavar="FILE",
    help="As for freeze.  [default: DEFAULT for torchvision and timm, otherwise the model's own]",
)  # fmt: skip
@number("--epochs", least=0, default=10, show_default=True, help="Epochs of the published fine-tuning; 0 for none.")
@number(
    "--images", "n_images", least=LEAST_IMAGES, default=default_of(FreezeOptions, "n_images"), show_default=True,
    help="Calibration images, drawn from train/.",
)  # fmt: skip
@number("--batch-size", default=100, show_default=True, help="Most calibration images per batch.")
@shared_options("seed", "memory", "skip-bad", "device", "verbose", "common")
def imagenet(run: str, threads: int | None, quiet: bool, data: str, **options: Any) -> None:
    """VGG-16 and ResNet-50 at the speed-ups of He, Zhang, Sun (ICCV 2017).

    Freezes, decomposes, fine-tunes and evaluates each; the table at the end has the published figures beside ours. An
    interrupted call goes on where it was stopped.
    """
    begin(threads)
    from ..recipes.imagenet import imagenet as table

    directory, reporter = open_run(run, quiet)
    show(table(directory.path, data, reporter=reporter, **options))
