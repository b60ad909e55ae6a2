"""Commands of filter pruning: prune, sensitivity."""

from __future__ import annotations

from typing import Any

import click

from decomp.allocation.plan import COSTS
from decomp.criteria.names import CRITERIA, NORMALISATIONS, RANKINGS
from decomp.runtimes.names import RUNTIMES

from ..console import parse
from ..console.options import LAYOUTS
from ..console.prune_options import BIASES, SCORINGS, PruneOptions, SensitivityOptions
from .group import main
from .inputs import network_and_images
from .shared import (
    DATA_HELP,
    MODEL_HELP,
    Choice,
    begin,
    default_of,
    number,
    open_run,
    refuse_beside,
    shared_options,
    show,
)  # fmt: skip

#: Options of freeze, by the names of the command's parameters.
FROZEN = (
    "weights", "input_size", "mean", "std", "resize", "crop", "flip", "transforms", "part", "leaves", "outputs",
    "n_images", "n_points", "skip_bad", "memory",
)  # fmt: skip

DECIDED_BY_PLAN = (
    "criterion", "speedup", "ratio", "cost", "ranking", "normalise", "floor", "cap", "scoring", "coupled", "multiple",
    "skip", "remove_branches",
)  # fmt: skip


@main.command(
    epilog="""\b
Examples:
  decomp prune --model zoo:vgg-digits --data digits --run runs/l1 --speedup 2x
  decomp prune --model zoo:vgg-digits --data digits --run runs/half --ratio 0.5
  decomp prune --model zoo:resnet20-fashion --data fashion-mnist --run runs/coupled --speedup 2x --coupled
  decomp prune --model zoo:vgg-digits --data digits --run runs/edited --keep runs/l1/prune.json
"""
)
@shared_options("run")
@click.option(
    "--model", metavar="NAME", help=MODEL_HELP + "  [default: that of the run, where it is frozen already]"
)  # fmt: skip
@click.option("--data", metavar="NAME", help=DATA_HELP + "  [default: those of the run, where it is frozen already]")
@click.option(
    "--criterion", type=Choice(CRITERIA), default=default_of(PruneOptions, "criterion"), show_default=True,
    help="Number that judges a channel; the channels with the lowest go.",
)  # fmt: skip
@click.option(
    "--speedup", type=parse.speedup, metavar="TIMES",
    help="Cost of the original over cost of the result, at least: 2x or 2.  [no default: give this, --ratio or --keep]",
)  # fmt: skip
@click.option(
    "--ratio", type=parse.share_below_one("--ratio"), metavar="SHARE",
    help="Instead: share of the channels that go, such as 0.5 or 50%.  [default: none]",
)  # fmt: skip
@click.option(
    "--keep", type=click.Path(), metavar="FILE",
    help="Instead: the channels that stay in the prune.json of another run, which can be edited.  [default: none]",
)  # fmt: skip
@click.option(
    "--cost", type=Choice(COSTS), default=default_of(PruneOptions, "cost"), show_default=True,
    help="Cost that --speedup counts: multiply-accumulates, parameters, or latency measured on this device.",
)  # fmt: skip
@click.option(
    "--ranking", type=Choice(RANKINGS),
    help="Rank channels within each layer, which all lose the same share, or those of all layers together.  [default: "
    "global for bn-scale, else layer]",
)  # fmt: skip
@click.option(
    "--normalise", type=Choice(NORMALISATIONS),
    help="Number of its layer that each score is divided by, for --ranking global.  [default: none for bn-scale, "
    "taylor and random, else mean]",
)  # fmt: skip
@number(
    "--floor", least=0, kind=float, most=1, metavar="SHARE",
    help="Share of its channels that each layer keeps at least.  [default: 0.1 for --ranking global, else 0]",
)  # fmt: skip
@number(
    "--cap", least=0, kind=float, most=1, metavar="SHARE", default=default_of(PruneOptions, "cap"), show_default=True,
    help="Largest share of its channels that a layer loses.",
)  # fmt: skip
@click.option(
    "--scoring", type=Choice(SCORINGS), default=default_of(PruneOptions, "scoring"), show_default=True,
    help="Judge filters without the kernels of removed input channels, or as they are in the original.",
)  # fmt: skip
@click.option("--coupled", is_flag=True, help="Also prune residual streams, as whole groups of layers.")
@click.option(
    "--remove-branches", is_flag=True,
    help="A residual branch may lose all channels of a layer, without --floor and --cap; it then goes as a whole.",
)  # fmt: skip
@click.option(
    "--skip", multiple=True, metavar="LAYER",
    help="Layer that keeps its filters, or several by * and ?; can be given several times.  [default: none]",
)  # fmt: skip
@number(
    "--multiple", default=default_of(PruneOptions, "multiple"), show_default=True,
    help="Numbers of channels are multiples of N in layers of 8 N channels or more, of N/2 from 4 N, and so on.",
)  # fmt: skip
@click.option(
    "--bias", type=Choice(BIASES), default=default_of(PruneOptions, "bias"), show_default=True,
    help="Values of dropped channels that the biases of the layers that read them take over: of constant channels, the "
    "means of all, or none.",
)  # fmt: skip
@click.option(
    "--recalibrate-bn", is_flag=True,
    help="Estimate the statistics of batch normalisations again on calibration images; kept only where it helps on "
    "held-out ones.",
)  # fmt: skip
@number(
    "--batch-size", "latency_batch", default=default_of(PruneOptions, "latency_batch"), show_default=True,
    help="Images per batch in time measurements, for --cost latency.",
)  # fmt: skip
@click.option(
    "--runtime", type=Choice(tuple(RUNTIMES)),
    help="Runtime in which the network will run, for --cost latency.  [default: eager]",
)  # fmt: skip
@click.option(
    "--layout", "latency_layout", type=Choice(LAYOUTS), default=default_of(PruneOptions, "latency_layout"),
    show_default=True, help="Memory layout of images and weights in time measurements, for --cost latency.",
)  # fmt: skip
@network_and_images
@shared_options("redo", "memory", "seed", "device", "skip-bad", "verbose", "common")
def prune(run: str, threads: int | None, quiet: bool, seed: int, **options: Any) -> None:
    """Remove the least important channels.

    Nothing is fitted: the weights that stay are those of the original. A run that is not frozen yet is frozen first.
    """
    if options["keep"] is not None:
        refuse_beside("--keep", DECIDED_BY_PLAN)
    begin(threads)
    from ..recipes.prune_run import prune_run as recipe

    directory, reporter = open_run(run, quiet)
    frozen = {name: options.pop(name) for name in FROZEN} | {"seed": seed}
    show(recipe(directory, reporter=reporter, seed=seed, frozen=frozen, **options))


@main.command(
    epilog="""\b
Examples:
  decomp sensitivity --run runs/l1
  decomp sensitivity --run runs/l1 --criterion taylor --ratios 0.25,0.5,0.75
"""
)
@shared_options("run")
@click.option(
    "--criterion", type=Choice(CRITERIA), default=default_of(SensitivityOptions, "criterion"), show_default=True,
    help="Number that judges a channel; the channels with the lowest go.",
)  # fmt: skip
@click.option(
    "--ratios", type=parse.ratios, metavar="LIST", default="0.1,0.3,0.5,0.7,0.9", show_default=True,
    help="Shares of a layer's channels that go.",
)  # fmt: skip
@click.option("--coupled", is_flag=True, help="Also prune residual streams, each as a whole.")
@shared_options("redo", "seed", "device", "verbose", "common")
def sensitivity(run: str, threads: int | None, quiet: bool, **options: Any) -> None:
    """Prune one layer at a time and compare the outputs.

    Nothing is trained. The curves are written as CSV and PNG, and are in the report.
    """
    begin(threads)
    from ..stages.sensitivity import sensitivity as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter, **options))
