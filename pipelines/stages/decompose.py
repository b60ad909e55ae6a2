"""Stage 2: compress a network layer by layer, from its frozen points to the emitted network."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from decomp.allocation.plan import STEPS, Plan, latency_words
from decomp.runtimes.precision import exact_float32
from decomp.solvers.solve_layer import FitSettings

from ...data.formats.digests import digest_json
from ..console.layer_table import excluded_lines, layer_lines, layer_rows, table_lines
from ..console.options import DecomposeOptions
from ..console.program import command_line, program
from ..console.reporter import Reporter
from ..decomposition import refine_blocks as block_refinement
from ..decomposition import run_plan
from ..decomposition.layer_loop import SolvedLayers, solve_layers
from ..decomposition.layer_reports import planned_layers
from ..decomposition.make_plan import decompose_options, read_plan
from ..decomposition.memory import work_words
from ..decomposition.run_network import finished
from ..decomposition.session import SurveyedRun, open_run
from ..measure import sanity
from ..measure.resources import Resources
from ..pruning.scale_factors import input_scales, network_with_scales
from ..pruning.unfolded import Unfolded
from ..reporting.summary import summarise
from ..run import loading, reuse
from ..run.begun import decompose_words
from ..run.conditions import label_options, require_not_pruned, require_same_options
from ..run.directory import RunDirectory
from ..run.stage_result import StageResult

FIT, CHECK = "fit of the layers", "check of the result"
PHASES = (*run_plan.PHASES, FIT, CHECK)
#: Steps that take time, by the labels of their progress, with their expected shares of it.
WORK = {"output metric": 0.1, "error curves": 0.35, "fit": 0.55}
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class DecomposeResult(StageResult):
    """Result of the stage: the plan, the counted cost and the closeness of the outputs."""

    def lines(self) -> list[str]:
        """Human-readable summary lines: what was found, then the next step."""
        return [*self.findings(), *self.next_steps()]

    def findings(self) -> list[str]:
        """The lines without the next step."""
        f = self.facts
        if f.get("plan_only"):
            return [*table_lines(f["table"]), f"plan: {self.run.plan_json}, which can be edited"]
        if self.done_before:
            first = f"{self.run.model_dir}: already decomposed at {f['asked']['speedup']:g}x, nothing to do"
        else:
            first = f"{self.run.model_dir}: decomposed"
        lines = [
            first,
            *layer_lines(summarise(self.run).layers),
            *excluded_lines(f.get("left_alone") or {}, len(STEPS)),
            f"{f['macs_before'] / 1e6:,.2f} M → {f['macs_after'] / 1e6:,.2f} M multiply-accumulates "
            f"({f['macs_before'] / f['macs_after']:.2f}x), "
            f"{f['params_before'] / 1e6:,.3f} M → {f['params_after'] / 1e6:,.3f} M parameters",
        ]
        lines += [latency_words(f["latency"])] if f.get("latency") else []
        if f.get("fidelity"):
            lines += f["fidelity"]["words"].split("\n")
        refined = f.get("block_refinement")
        lines += [*([block_refinement.summary(refined)] if refined else []), *f.get("more_images", [])]
        if "passes" in f:
            lines.append(work_words(f["passes"], f["spilled_bytes"], (refined or {}).get("passes", 0.0)))
        lines += sanity.doubts(self.run.config("freeze"))
        folder, into = str(self.run.model_dir), f.get("into") or {}
        if into.get("verified") is False:
            lines.append(f"decomp.load({folder!r}) gives the network, into= not: {into['reason']}")
        return [*lines, into["unused"]] if into.get("unused") else lines

    def next_steps(self) -> list[str]:
        """The line with the next step."""
        f = self.facts
        if f.get("plan_only"):
            return [f"next: {program()} {f['again']}"]
        if f.get("part") and (f.get("into") or {}).get("verified") is not False:
            return [f"next: decomp.load({str(self.run.model_dir)!r}, into=model) puts {f['part']} back into its model"]
        if self.done_before and self.run.config("finetune") is not None:
            return [f"next: {command_line('status', self.run.path)}"]
        return [f"next: {command_line('finetune', self.run.path, label_options(self.run))}"]


def decompose(
    run: PathLike | RunDirectory,
    *,
    speedup: float | str | None = None,
    steps: Sequence[str] = STEPS,
    selector: str = "best",
    allocation: str = "joint",
    cost: str = "macs",
    multiple: int = 8,
    skip: Sequence[str] = (),
    keep_first: bool = False,
    max_layer_speedup: float | None = None,
    latency_batch: int = 64,
    latency_layout: str = "contiguous",
    runtime: str | None = None,
    plan: PathLike | None = None,
    activation_aware: bool = True,
    refine: bool = True,
    recovery: bool = True,
    sampler: bool = True,
    refine_blocks: bool = True,
    coupled: float | str | None = None,
    leave_out: str | Sequence[str] = (),
    device: str = "auto",
    plan_only: bool = False,
    source_run: PathLike | None = None,
    redo: bool = False,
    batch_size: int = 100,
    memory: int | str | None = None,
    original: nn.Module | None = None,
    reporter: Reporter | None = None,
) -> DecomposeResult:
    """Make the network ``speedup`` times cheaper and emit it.

    Parameters
    ----------
    run : path or RunDirectory
        With frozen points in it, unless ``source_run`` is given.
    speedup : float
        Cost of the original over that of the emitted network, above 1. Not with ``plan``.
    steps : sequence of {'spatial', 'channel', 'prune'}
    selector : str
        Rule for the choice of pruned channels: 'best', 'lasso', 'backward', 'l1', 'max-response', 'first-k', 'random',
        or a criterion of :data:`decomp.criteria.names.AS_SELECTORS`.
    allocation : {'joint', 'energy', 'uniform'}
        Rule for the sizes of all layers, see :mod:`decomp.allocation.allocator`.
    cost : {'macs', 'params', 'latency'}
        Cost to reduce: multiply-accumulates, parameters, or the time measured on this device.
    multiple : int
        Widths and ranks are multiples of it in layers that are wide enough, see
        :func:`decomp.allocation.sizes.fitting_multiple`.
    skip : sequence of str
        Layers that keep their shape, by name or pattern.
    keep_first : bool
        The first convolution keeps its shape.
    max_layer_speedup : float, optional
        No layer becomes more than so many times cheaper.
    latency_batch : int
        Images at a time, where ``cost`` is 'latency'.
    runtime : str, optional
        Where ``cost`` is 'latency': the runtime in which the network will run, of
        :data:`decomp.runtimes.names.RUNTIMES`; eager mode if none is given.
    latency_layout : str
        Memory layout of images and weights then, of :data:`decomp.runtimes.eager.LAYOUTS`.
    plan : path, optional
        A plan to use instead of a new one; it decides speed-up, steps, allocation, cost and multiple.
    activation_aware : bool
        Fit behind the activation where it is known, otherwise linearly everywhere.
    refine : bool
        Refine the factors of each layer jointly, in the metric of the network's output.
    recovery : bool
        The last layer in front of a sum makes up for the error of the value that it is added to.
    sampler : bool
        Layers that share their input with others may read a subset of it.
    refine_blocks : bool
        Train the weights of a few layers at a time towards the original's maps when all are fitted, see
        :mod:`decomp.pipelines.decomposition.refine_blocks`; the result is kept where held-out images gain by it.
    coupled : float or 'auto', optional
        Share of the channels that stay in whole spaces that several layers write or read (residual streams), in
        (0, 1], all if None; 'auto' tries some. plan.json can give each space a number of its own.
    leave_out : str or sequence of str
        Residual blocks that go: paths of their last layers or of modules around them, patterns, or 'auto'.
    device : {'auto', 'cpu', 'cuda'}
    plan_only : bool
        Stop when plan.json is written.
    source_run : path, optional
        Take the frozen points from this run; ``run`` is then made anew.
    redo : bool
        Delete an earlier decomposition of this run.
    batch_size : int
        Upper limit of the images at a time; fewer where memory is short.
    memory : int or str, optional
        Memory limit in bytes, or as text such as ``8GiB``; half of the machine's memory where not given. See
        :mod:`decomp.pipelines.decomposition.memory`.
    original : torch.nn.Module, optional
        An instance of the original class, where the name of the model does not build one: a network that was frozen
        from memory. The result is checked in a copy of it.
    reporter : Reporter, optional

    Raises
    ------
    DecompError
        UsageError for an option, before the run is touched; FileError for a file of the run; TargetError for a
        target out of reach or a plan that does not fit the network.
    """
    reporter = reporter or Reporter()
    given = None if plan is None else read_plan(plan)
    options = decompose_options(
        given, speedup=speedup, steps=steps, selector=selector, allocation=allocation, cost=cost, multiple=multiple,
        skip=skip, keep_first=keep_first, max_layer_speedup=max_layer_speedup, latency_batch=latency_batch,
        latency_layout=latency_layout, runtime=runtime, activation_aware=activation_aware, refine=refine,
        recovery=recovery, sampler=sampler, refine_blocks=refine_blocks, coupled=coupled, leave_out=leave_out,
    )  # fmt: skip
    resources = Resources.of(device, memory, batch_size)
    phases = run_plan.PHASES if plan_only else PHASES
    with (
        reuse.opened(run, source_run, reporter) as directory, directory.lock(), reporter.stage("decompose", phases),
        exact_float32(),
    ):  # fmt: skip
        directory.original = original
        require_not_pruned(directory)
        redo = redo or reuse.is_noted_for_redo(directory, options)
        before = None if redo else _done_before(directory, options)
        if before is not None:
            return before
        loading.warn_of_other_versions(directory, "decompose" if directory.layers_dir.is_dir() else "freeze", reporter)
        reporter.expect(WORK | ({block_refinement.LABEL: block_refinement.WORK} if options.refine_blocks else {}))
        scaled = network_with_scales(directory) if options.selector == "bn-scale" else None
        with open_run(directory, resources, start_over=redo) as opened:
            if redo:
                # Not earlier: what stops a run from being opened must not cost the result that is there.
                if reuse.keeps_plan(directory, options):
                    read_plan(directory.plan_json, of_run=True)
                reuse.clear(directory, options)
            surveyed, found = run_plan.plan_of_run(options, given, opened, reporter, original)
            if plan_only:
                return _planned(options, found, surveyed, reporter)
            reporter.phase(FIT)
            solved = _solve(options, found, surveyed, scaled, reporter)
            reporter.phase(CHECK)
            return DecomposeResult(directory, False, finished(found, surveyed, solved, reporter, original))


def _done_before(run: RunDirectory, options: DecomposeOptions) -> DecomposeResult | None:
    """The result of an earlier run with the same options; an error for other options; None when there is none."""
    before = run.config("decompose")
    if before is None or not (run.plan_json.is_file() or "macs_after" in before):
        return None
    fix = f"use --redo to replace it, or --run OTHER --from {run.path} to keep both"
    asked = {"refine_blocks": False, **before["asked"]}  # in runs of versions that could not
    if [name for name, *_ in options.differences(asked)] == ["refine_blocks"]:
        fix = f"give --{'no-' * options.refine_blocks}refine-blocks to leave it so, {fix}"
    require_same_options(run, "decomposed" if "macs_after" in before else "begun", options, asked, fix, _shown)
    if "macs_after" in before and (run.model_dir / "structure.json").is_file():
        loading.load_network(run, run.model_dir)
        return DecomposeResult(run, True, before)
    return None


def _shown(name: str, value: Any) -> Any:
    return value if name != "plan" else "none" if value is None else f"one of digest {value[:12]}"


def _planned(options: DecomposeOptions, plan: Plan, surveyed: SurveyedRun, reporter: Reporter) -> DecomposeResult:
    """Result of a call that ends with the plan, with its table and the command that continues."""
    run = surveyed.opened.run
    again = decompose_words(run, options.to_json())
    if reporter.command:
        again = shlex.join(word for word in shlex.split(reporter.command) if word != "--plan-only")
    table = layer_rows(planned_layers(plan, surveyed))
    return DecomposeResult(run, False, {"asked": options.to_json(), "plan_only": True, "table": table, "again": again})


def _solve(
    options: DecomposeOptions, plan: Plan, surveyed: SurveyedRun, scaled: Unfolded | None, reporter: Reporter
) -> SolvedLayers:
    """Solve and apply all layers; committed ones are read."""
    opened, narrowed = surveyed.opened, surveyed.narrowed
    # The layers are the same without the one, and the plan says what the other one found.
    asked = {key: value for key, value in options.to_json().items() if key not in ("refine_blocks", "leave_out")}
    parent = digest_json({
        "plan": plan.to_json(), "asked": asked, "frozen": opened.frozen.content,
        "spaces": narrowed.channels,
    })  # fmt: skip
    scores = None
    if scaled is not None:
        layers = [layer for layer in surveyed.graph.layers if layer.fitted]
        pruned = [layer for layer in layers if plan.layer(layer.name).keep is not None]
        scores = input_scales(scaled, pruned, narrowed.remaining_outputs)
        if others := [layer.name for layer in pruned if layer.name not in scores]:
            reporter.step(f"without scale factors for all they read, chosen by selector best: {', '.join(others)}")
    settings = FitSettings(options.selector, options.activation_aware, options.refine)
    solved = solve_layers(
        opened.run, plan, surveyed.gatherer(options), parent, settings, reporter=reporter, scores=scores
    )
    if options.refine_blocks:
        solved.blocks = block_refinement.refine_blocks(surveyed, solved, reporter=reporter)
    return solved
