"""Commands that make something: freeze, decompose, finetune, train, demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from decomp.allocation.plan import ALLOCATIONS, COSTS, STEPS
from decomp.criteria.names import AS_SELECTORS
from decomp.errors import UsageError
from decomp.runtimes.names import RUNTIMES
from decomp.solvers.selectors import SELECTORS

from ..console import parse
from ..console.finetune_options import BATCH_SIZES, FINETUNE_EPOCHS, LABELS, FinetuneOptions
from ..console.options import (
    LAYOUTS,
    RUN_FORMATS,
    SCHEDULES,
    DecomposeOptions,
)  # fmt: skip
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
    refuse_beside,
    reporter_without_run,
    shared_options,
    show,
    take_inputs,
)  # fmt: skip

if TYPE_CHECKING:
    from ..run.directory import RunDirectory


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
  decomp decompose --run runs/vgg --speedup 4x
  decomp decompose --run runs/vgg --speedup 4x --plan-only
  decomp decompose --run runs/vgg --speedup 2x,3x,4x,5x --evaluate
  decomp decompose --run runs/vgg --speedup 4x --export pt2,onnx
  decomp decompose --run runs/vgg --max-drop 1%
  decomp decompose --run runs/fast --from runs/vgg --speedup 2x --cost latency --batch-size 1
  decomp decompose --run runs/fast --from runs/vgg --speedup 2x --cost latency --runtime onnxruntime
  decomp decompose --run runs/mine --from runs/vgg --plan plan.json
  decomp decompose --run runs/vgg-spatial --from runs/vgg --speedup 2.5x --steps spatial
"""
)
@shared_options("run")
@click.option(
    "--speedup", type=parse.speedups, metavar="TIMES",
    help="Cost of the original over cost of the result: 4x, 4 or 2.5x. Several, such as 2x,3x,4x, make a run directory "
    "for each beside --run, all from its frozen points.  [no default: give this, --max-drop or --plan]",
)  # fmt: skip
@click.option(
    "--max-drop", type=parse.loss_budget, metavar="SHARE",
    help="Instead of --speedup: the largest speed-up that loses at most this much, such as 1%, of the accuracy on "
    "held-out training images, or without labels of the first classes.  [default: none]",
)  # fmt: skip
@click.option(
    "--cost", type=Choice(COSTS), default=default_of(DecomposeOptions, "cost"), show_default=True,
    help="Cost to reduce: multiply-accumulates, parameters, or latency measured on this device.",
)  # fmt: skip
@number(
    "--batch-size", "latency_batch", default=default_of(DecomposeOptions, "latency_batch"), show_default=True,
    help="Images per batch in time measurements, for --cost latency.",
)  # fmt: skip
@click.option(
    "--runtime", type=Choice(tuple(RUNTIMES)),
    help="Runtime in which the network will run, for --cost latency.  [default: eager]",
)  # fmt: skip
@click.option(
    "--layout", "latency_layout", type=Choice(LAYOUTS), default=default_of(DecomposeOptions, "latency_layout"),
    show_default=True, help="Memory layout of images and weights in time measurements, for --cost latency.",
)  # fmt: skip
@click.option(
    "--allocation", type=Choice(ALLOCATIONS), default=default_of(DecomposeOptions, "allocation"), show_default=True,
    help="Rule that distributes the cost over the layers.",
)  # fmt: skip
@click.option(
    "--steps", metavar="LIST", default=default_of(DecomposeOptions, "steps"), show_default=True,
    type=lambda text: parse.several("--steps", text, STEPS, "leave it out to use all three"),
    help="Comma-separated: spatial (k×1 and 1×k), channel (fewer filters and a 1×1), prune (fewer input channels).",
)  # fmt: skip
@number(
    "--multiple", default=default_of(DecomposeOptions, "multiple"), show_default=True,
    help="Widths and ranks are multiples of N in layers of 8 N channels or more, of N/2 from 4 N, and so on.",
)  # fmt: skip
@click.option(
    "--skip", multiple=True, metavar="LAYER",
    help="Layer that keeps its shape, or several by * and ?; can be given several times.  [default: none]",
)  # fmt: skip
@click.option("--keep-first", is_flag=True, help="The first convolution keeps its shape.")
@number("--max-layer-speedup", kind=float, help="Largest speed-up of any single layer.  [default: no limit]")
@click.option(
    "--selector", type=Choice((*SELECTORS, *AS_SELECTORS)), default=default_of(DecomposeOptions, "selector"),
    show_default=True,
    help="Criterion for the channels to keep; best: the better fit of lasso and backward; l1: of the layer's own "
    "weights; from l2 on: criteria of `decomp prune`.",
)  # fmt: skip
@click.option("--linear", is_flag=True, help="Fit outputs before the activation function in all layers.")
@click.option("--no-refine", is_flag=True, help="Skip the joint refinement of each layer's factors.")
@click.option(
    "--no-recovery", is_flag=True, help="Do not correct a shortcut's errors in the last layer before its sum."
)
@click.option(
    "--refine-blocks/--no-refine-blocks", default=default_of(DecomposeOptions, "refine_blocks"), show_default=True,
    help="Train a few layers at a time towards the original's maps when all are fitted, without labels; it stays where "
    "held-out images are closer by it.",
)  # fmt: skip
@click.option("--no-sampler", is_flag=True, help="Do not let a layer read a subset of channels that others read too.")
@number(
    "--coupled", kind=float, least=0, above=True, most=1, word=parse.AUTO, metavar="SHARE",
    help="Keep only this share, such as 0.75, of the channels in residual streams and other channel spaces that "
    "several layers write or read; auto tries some.  [default: all of them]",
)  # fmt: skip
@click.option(
    "--leave-out", multiple=True, metavar="BLOCK",
    help="Residual block that goes, or several by * and ?; can be repeated. auto: those that help.  [default: none]",
)  # fmt: skip
@click.option(
    "--evaluate", "then_evaluate", is_flag=True,
    help="Evaluate the result; of several, write one page that compares them.",
)  # fmt: skip
@click.option(
    "--export", "then_export", metavar="LIST",
    type=lambda text: parse.several("--export", text, RUN_FORMATS, "give for example pt2", ordered=False),
    help=f"Export the result, comma-separated: {', '.join(RUN_FORMATS)}; tried with random weights first.  "
    "[default: none]",
)  # fmt: skip
@click.option("--plan-only", is_flag=True, help="Stop after writing plan.json, which can be edited.")
@click.option(
    "--plan",
    metavar="FILE",
    help="Use this plan; it contains speed-up, steps, allocation and cost.  [default: a new plan]",
)
@click.option(
    "--from", "source_run", metavar="DIR", help="Use the frozen points of another run.  [default: those of --run]"
)
@shared_options("redo", "memory", "device", "verbose", "common")
def decompose(
    run: str, threads: int | None, quiet: bool, linear: bool, speedup: tuple[float, ...] | None,
    max_drop: float | None, then_evaluate: bool, then_export: tuple[str, ...] | None, **options: Any,
) -> int:  # fmt: skip
    """Replace convolutions by cheaper ones.

    Layer by layer from the input, each fitted by least squares to the recorded outputs of the original.
    """
    if options["plan"] is not None:
        refuse_beside("--plan", parse.IN_A_PLAN)
    for name, asked in {"--evaluate": then_evaluate, "--export": then_export}.items():
        if asked and options["plan_only"]:
            raise UsageError(name, "needs a finished network", got="--plan-only", fix="leave one of them out")
    begin(threads)
    directory, reporter = open_run(run, quiet)
    take_inputs(options)
    options.update(activation_aware=not linear, reporter=reporter)
    for name in ("refine", "recovery", "sampler"):
        options[name] = not options.pop(f"no_{name}")
    if then_export:
        from ..recipes.exported import exported, require_exportable

        first = speedup[0] if speedup else None if max_drop is None else 2.0  # it does not decide the kind of network
        require_exportable(directory, then_export, speedup=first, options=options, reporter=reporter)
    result, runs = _decompose(directory, speedup, max_drop, options)
    code = getattr(result, "exit_code", 0)  # a family may lack a member
    if then_evaluate and runs:
        from ..recipes.evaluated import evaluated

        out = f"{directory}-comparison"
        result = evaluated(result, runs, out=out, device=options["device"], reporter=reporter)
    if then_export and runs:
        result = exported(result, runs, then_export, reporter=reporter)
        code = max(code, result.exit_code)
    show(result)
    return code


def _decompose(
    run: RunDirectory, speedups: tuple[float, ...] | None, max_drop: float | None, options: dict[str, Any]
) -> tuple[Any, list[RunDirectory]]:
    """Result of a decomposition for one speed-up, several, or a loss budget, and the runs that were made."""
    if max_drop is not None:
        from ..recipes.loss_budget import decompose_within

        within = decompose_within(run, max_drop=max_drop, speedup=speedups, **options)
        return within, within.runs()
    if speedups is not None and len(speedups) > 1:
        from ..recipes.family import family

        members = family(run, speedups=speedups, **options)
        return members, [member.run for member in members.members]
    from ..stages.decompose import decompose as stage

    single = stage(run, speedup=None if speedups is None else speedups[0], **options)
    return single, [single.run]


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
