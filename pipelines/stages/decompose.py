"""Stage 2: compress a network layer by layer, from its frozen points to the emitted network."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from decomp.allocation.plan import STEPS, Plan, latency_words
from decomp.cost.count import Cost
from decomp.errors import DecompError
from decomp.runtimes.precision import exact_float32
from decomp.solvers.solve_layer import FitSettings
from decomp.time_spent import part

from ...data.formats import network_file
from ...data.formats.digests import digest_file, digest_json
from ..console.layer_table import excluded_lines, layer_lines, layer_rows, table_lines
from ..console.options import DecomposeOptions
from ..console.program import command_line, program
from ..console.reporter import Reporter
from ..console.time_table import time_lines
from ..decomposition import refine_blocks as block_refinement
from ..decomposition.emission import checked_cost, emit, unused_work
from ..decomposition.layer_loop import SolvedLayers, solve_layers
from ..decomposition.layer_reports import announce, more_images, planned_layers
from ..decomposition.make_plan import decompose_options, make_plan, read_plan, space_candidates
from ..decomposition.memory import work_words
from ..decomposition.plan_search import surveyed_run, with_blocks_left_out
from ..decomposition.rehearsal import rehearse
from ..decomposition.session import OpenedRun, SurveyedRun, open_run
from ..distributed.process_group import count, exchanged_bytes, number, total
from ..measure import fidelity, sanity
from ..measure.resources import Resources
from ..pruning.scale_factors import input_scales, network_with_scales
from ..pruning.unfolded import Unfolded
from ..reporting.summary import summarise
from ..run import loading, reuse
from ..run.calibration import fitted_images
from ..run.conditions import label_options, require_not_pruned, require_same_options
from ..run.directory import RunDirectory
from ..run.outputs import frozen_outputs
from ..run.stage_result import StageResult

SURVEY, PLAN, FIT, CHECK = PHASES = ("survey of all sizes", "plan", "fit of the layers", "check of the result")
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
            lines.append(work_words(f["passes"], f["spilled_bytes"]))
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
    directory = RunDirectory.open(run if source_run is None else reuse.borrow(run, source_run))
    directory.original = original
    with directory.lock(), reporter.stage("decompose", PHASES[:2] if plan_only else PHASES), exact_float32():
        require_not_pruned(directory)
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
            surveyed, plan_of_run = _plan(options, given, opened, reporter, original)
            if plan_only:
                return _planned(options, plan_of_run, surveyed, reporter)
            reporter.phase(FIT)
            solved = _solve(options, plan_of_run, surveyed, scaled, reporter)
            reporter.phase(CHECK)
            after = checked_cost(plan_of_run, surveyed.graph, reporter)
            verified = _emit(plan_of_run, surveyed, solved, after, reporter, original)
            close = _compare(surveyed, reporter)
            return _record(plan_of_run, surveyed, solved, after, close, verified, reporter)


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


def _plan(
    options: DecomposeOptions, given: Plan | None, opened: OpenedRun, reporter: Reporter, original: nn.Module | None
) -> tuple[SurveyedRun, Plan]:
    """Survey and plan of the run, announced; an attempt that ends without a plan leaves no record."""
    run = opened.run
    before, is_new = run.config("decompose") or {}, not run.plan_json.is_file()
    record: dict[str, Any] = {"asked": options.to_json(), "limits": opened.memory.limits.to_json()}
    if command := reporter.command or before.get("command"):
        record["command"] = command
    if "plan_digest" in before and not is_new:
        record["plan_digest"] = before["plan_digest"]
    run.update_config("decompose", record)
    try:
        candidates = space_candidates(run, options, given, opened.graph)
        reporter.phase(SURVEY)
        if is_new and number() == 0:
            rehearsed = rehearse(opened, options, list(candidates.values())[-1], original=original)
            if rehearsed.into is False:
                reporter.warn(f"the result may be a traced network: one of random sizes {rehearsed.words()}")
        surveyed = surveyed_run(opened, candidates, options, reporter)
        reporter.phase(PLAN)
        surveyed = with_blocks_left_out(run, options, given, surveyed, reporter)
        plan = make_plan(run, options, surveyed, given=given if is_new else None, reporter=reporter)
    except DecompError:
        if not run.plan_json.is_file():
            run.update_config("decompose", None)
        raise
    if record.get("plan_digest") not in (None, digest_file(run.plan_json)):
        reporter.warn(f"{run.plan_json} was edited; the edited plan is used")
    # Digest of the plan as written here: another one later, or none, means that the plan was edited.
    record.setdefault("plan_digest", digest_file(run.plan_json) if is_new else "")
    record["n_fitted"] = sum(layer.recorded for layer in surveyed.graph.layers)
    run.update_config("decompose", record)
    announce(plan, surveyed.graph, reporter)
    return surveyed, plan


def _planned(options: DecomposeOptions, plan: Plan, surveyed: SurveyedRun, reporter: Reporter) -> DecomposeResult:
    """Result of a call that ends with the plan, with its table and the command that continues."""
    run = surveyed.opened.run
    again = f"decompose --run {shlex.quote(str(run))} --speedup {options.speedup:g}x"
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


# The layers are solved now. None of the checks below may lose them: each says what it found, and the work is recorded.
@part("files")
def _emit(
    plan: Plan, surveyed: SurveyedRun, solved: SolvedLayers, after: Cost, reporter: Reporter, original: nn.Module | None
) -> network_file.Verified:
    """Write the compressed network, and try whether the class of the original takes it where it is at hand."""
    opened = surveyed.opened
    meta = {"model": opened.frozen.meta["model"], "plan": plan.to_json(), "macs": after.macs}
    verified = emit(
        opened, surveyed.graph.module.cpu(), opened.run.model_dir,
        edited=[*surveyed.narrowed.edited, *solved.edited], meta={**meta, "macs_before": opened.cost.macs},
        original=original,
    )  # fmt: skip
    say = reporter.warn if verified.into is False else reporter.step
    say(f"network read back from its files: {verified.words()}")
    return verified


@part("comparison with the original")
def _compare(surveyed: SurveyedRun, reporter: Reporter) -> dict[str, Any]:
    """Closeness of the outputs to the original's on the held-out images; empty where it cannot be told."""
    opened = surveyed.opened
    try:
        close = fidelity.compare(
            opened.original.to(opened.device), surveyed.graph.module.to(opened.device), opened.frozen,
            fitted_images(opened.frozen.n_images), opened.memory.limits.batch_size, opened.device,
            frozen_outputs(opened.frozen),
        )  # fmt: skip
    except DecompError as error:
        reporter.warn(f"the network is written, but its outputs cannot be compared with the original's: {error}")
        return {}
    opened.memory.count_passes(2 * (close["images"] + close["fitted"]["images"]) / count())
    return close


def _record(
    plan: Plan, surveyed: SurveyedRun, solved: SolvedLayers, after: Cost, close: Mapping[str, Any],
    verified: network_file.Verified, reporter: Reporter,
) -> DecomposeResult:  # fmt: skip
    """Put the result down in run.json."""
    opened, run = surveyed.opened, surveyed.opened.run
    unused = "" if verified.network is None else unused_work(verified.network, run.model_dir)
    facts = {
        **(run.config("decompose") or {}), "macs_before": opened.cost.macs, "macs_after": after.macs,
        "params_before": opened.cost.params, "params_after": after.params, "layers": solved.reports,
        **({"block_refinement": solved.blocks} if solved.blocks else {}),
        "more_images": more_images(solved.reports, fitted_images(opened.frozen.n_images), close.get("words", "")),
        "into": {"verified": verified.into, "reason": verified.reason, "unused": unused}, "fidelity": close,
        "latency": plan.latency, "part": opened.frozen.meta.get("part"),
        "passes": round(total(opened.memory.forward_images) / opened.frozen.n_recorded, 2),
        "spilled_bytes": opened.memory.most_on_disk, "times": reporter.times(),
        "left_alone": {layer.name: dict(layer.left_alone) for layer in surveyed.graph.layers if layer.left_alone},
    }  # fmt: skip
    run.update_config("decompose", facts)
    for line in time_lines(facts["times"]):
        reporter.step(line)
    if count() > 1:
        reporter.step(f"{count()} processes, each gave {exchanged_bytes() / 2**20:,.1f} MiB of tensors to exchanges")
    return DecomposeResult(run, False, facts)
