"""Commands that show or export a result: inspect, evaluate, export, report, compare, status, runs."""

from __future__ import annotations

from typing import Any

import click

from decomp.runtimes.names import RUNTIMES

from ..console.options import LAYOUTS, LEAST_IMAGES, RUN_FORMATS, EvaluateOptions, FreezeOptions, run_formats
from ..console.parse import dynamic, runtimes
from ..console.program import program
from ..run.networks import NETWORK_NAMES
from .group import main
from .shared import (
    DATA_HELP,
    MODEL_HELP,
    Choice,
    begin,
    default_of,
    number,
    open_run,
    reporter_without_run,
    shared_options,
    show,
)  # fmt: skip


@main.command(
    epilog="""\b
Examples:
  decomp inspect --model zoo:resnet20-fashion
  decomp inspect --model torchvision:resnet50 --dot resnet50.dot
  decomp inspect --model nets.py:detector --module backbone --input-size 3x320x320
"""
)
@click.option("--model", required=True, metavar="NAME", help=MODEL_HELP)
@click.option("--data", metavar="NAME", help=DATA_HELP + " Gives the size of the images.  [default: none]")
@click.option(
    "--weights", metavar="FILE", help="As for freeze; only the shapes and what is recorded with them matter here.  "
    "[default: none needed]",
)  # fmt: skip
@click.option(
    "--input-size", metavar="[CxHx]W", help="Size of one image where neither model nor data give it.  [default: theirs]"
)
@shared_options("part", "leaf")
@number(
    "--images", "n_images", least=LEAST_IMAGES, default=default_of(FreezeOptions, "n_images"), show_default=True,
    help="Number of calibration images to assume; layers with too many columns for them are excluded.",
)  # fmt: skip
@click.option(
    "--dot", metavar="FILE", help="Write a drawing of layers and channel spaces for graphviz.  [default: none]"
)
@click.option("--png", metavar="FILE", help="Write the drawing as PNG; needs graphviz (dot).  [default: none]")
@shared_options("common")
def inspect(threads: int | None, quiet: bool, model: str, **options: Any) -> None:
    """List layers, applicable steps and channel spaces.

    Layers that stay unchanged are listed with the reason.
    """
    begin(threads)
    from ..stages.inspection import inspect as stage

    show(stage(model, **options))


@main.command(
    epilog="""\b
Examples:
  decomp evaluate --run runs/vgg
  decomp evaluate --run runs/vgg --batch-size 1 --json
  decomp evaluate --run runs/vgg --batch-size 1 --runtime all
"""
)
@shared_options("run")
@number(
    "--batch-size",
    help="Images per batch in the latency measurement.  [default: that of a plan by latency, otherwise 64]",
)
@number(
    "--repeats", default=default_of(EvaluateOptions, "repeats"), show_default=True,
    help="Rounds of the latency measurement.",
)  # fmt: skip
@click.option(
    "--runtime", type=runtimes, metavar="LIST",
    help=f"Runtimes to measure latency in, comma-separated: {', '.join(RUNTIMES)}, or all that are installed.  "
    "[default: that of a plan by latency, otherwise eager]",
)  # fmt: skip
@click.option(
    "--layout", type=Choice(LAYOUTS),
    help="Memory layout of images and weights in the latency measurement.  [default: that of a plan by latency, "
    "otherwise contiguous]",
)  # fmt: skip
@shared_options("redo", "device", "verbose", "common")
def evaluate(run: str, threads: int | None, quiet: bool, **options: Any) -> None:
    """Measure accuracy and latency of a run's networks."""
    begin(threads)
    from ..stages.evaluate import evaluate as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter, **options))


@main.command(
    epilog="""\b
Examples:
  decomp export --run runs/vgg --format pt2,onnx
  decomp export --run runs/vgg --which decomposed --format state-dict --out deploy
"""
)
@shared_options("run")
@click.option(
    "--format", "formats", type=run_formats, metavar="LIST", default="pt2,state-dict", show_default=True,
    help=f"Comma-separated: {', '.join(RUN_FORMATS)}; onnx and onnx-int8, which is calibrated on images of the run, "
    "need decomp[export].",
)  # fmt: skip
@click.option("--which", type=Choice(NETWORK_NAMES), help="Network to export.  [default: the most advanced one]")
@click.option("--out", type=click.Path(), metavar="DIR", help="Folder to write to.  [default: export/ in the run]")
@click.option(
    "--dynamic", type=dynamic, metavar="LIST", default="auto", show_default=True,
    help="Sizes of images that programs leave open: height, width, both with a comma, none, or auto: all that can be.",
)  # fmt: skip
@shared_options("verbose", "common")
def export(run: str, threads: int | None, quiet: bool, **options: Any) -> None:
    """Export a network for use without this package.

    Each file is checked against the network.
    """
    begin(threads)
    from ..stages.export import export as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter, **options))


@main.command(
    epilog="""\b
Examples:
  decomp report --run runs/vgg
"""
)
@shared_options("run")
@click.option("--out", type=click.Path(), metavar="DIR", help="Folder to write to.  [default: the run]")
@shared_options("verbose", "common")
def report(run: str, threads: int | None, quiet: bool, **options: Any) -> None:
    """Write the report of a run: HTML, PNG and CSV."""
    begin(threads)
    from ..stages.report import report as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter, **options))


@main.command(
    epilog="""\b
Examples:
  decomp compare runs/vgg-2x runs/vgg-4x
  decomp compare runs/vgg-2x runs/vgg-4x --out comparison
"""
)
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out", type=click.Path(), metavar="DIR", help="Folder to write to.  [default: comparison/ beside the first run]"
)
@shared_options("verbose", "common")
def compare(runs: tuple[str, ...], threads: int | None, quiet: bool, **options: Any) -> None:
    """Compare evaluated runs in a table and on an HTML page."""
    begin(threads)
    from ..stages.report import compare as stage

    show(stage(runs, reporter=reporter_without_run(quiet), **options))


@main.command()
@shared_options("run", "json", "debug")
def status(run: str) -> None:
    """List finished stages, next command and files."""
    from ..stages.status import status as stage

    show(stage(run, program=program()))


@main.command()
@click.argument("folder", type=click.Path(), default="runs")
@shared_options("json", "debug")
def runs(folder: str) -> None:
    """List the runs in a folder.

    One line for each run directory below FOLDER (runs/ where it is not given): its network, how far it is, its counted
    speed-up and the accuracy that evaluate measured.
    """
    from ..stages.runs import runs as stage

    show(stage(folder))
