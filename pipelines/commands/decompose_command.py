"""Command decompose: one speed-up, several, or the largest one within a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from decomp.allocation.plan import ALLOCATIONS, COSTS, STEPS
from decomp.criteria.names import AS_SELECTORS
from decomp.errors import UsageError
from decomp.runtimes.names import RUNTIMES
from decomp.solvers.selectors import SELECTORS

from ..console import parse
from ..console.options import LAYOUTS, RUN_FORMATS, DecomposeOptions
from .group import main
from .shared import (
    Choice,
    begin,
    default_of,
    number,
    open_run,
    refuse_beside,
    shared_options,
    show,
    take_inputs,
)  # fmt: skip

if TYPE_CHECKING:
    from ..run.directory import RunDirectory


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
    help="Train a few layers at a time towards the original's maps when all are fitted, then, with 1,000 "
    "images or more, all together towards its class scores, without labels; it stays where held-out images are closer "
    "by it.",
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
