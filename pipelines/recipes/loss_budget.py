"""Largest speed-up within a loss budget: bisection on finished networks, each measured on held-out training images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from decomp.errors import TargetError, UsageError
from decomp.execution.output_change import Outputs

from ...data.formats.digests import digest_file
from ..console import parse
from ..console.program import command_line
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..decomposition.make_plan import decompose_options
from ..distributed.own_copy import take_folder
from ..distributed.process_group import from_first
from ..measure.held_out_loss import HeldOutImages, HeldOutLoss, held_out_loss, images_outside_fits
from ..measure.resources import Resources
from ..run import loading
from ..run.calibration import draw_images, fitted_images
from ..run.conditions import freeze_options, label_options
from ..run.directory import RunDirectory
from ..run.images import open_images
from ..run.loading import run_outputs
from ..run.reuse import note_redo
from ..stages.decompose import DecomposeResult, decompose
from ..training.hold_out import hold_out
from .family import survey_once

#: First speed-up that is tried, and the factor to the next one while the loss stays within the budget.
FIRST, STEP = 2.0, 1.5
#: The search ends when the smallest speed-up that lost too much is at most so many times the answer.
PRECISION = 1.05
#: No speed-up below it is tried.
LEAST = 1.05
MOST_TRIALS = 9


@dataclass(frozen=True)
class Trial:
    """One speed-up of the search.

    Attributes
    ----------
    speedup : float
    loss : HeldOutLoss or None
        None where the speed-up is out of reach.
    result : DecomposeResult or None
    """

    speedup: float
    loss: HeldOutLoss | None = None
    result: DecomposeResult | None = None


@dataclass(frozen=True)
class BudgetResult:
    """Result of the search.

    Attributes
    ----------
    budget : float
        Allowed loss, a share.
    trials : list of Trial
        By speed-up.
    best : Trial or None
        The largest speed-up whose measured loss is within the budget.
    cost : str
        The cost that shrinks.
    """

    budget: float
    trials: list[Trial]
    best: Trial | None
    cost: str

    def runs(self) -> list[RunDirectory]:
        """The runs that were made, by speed-up."""
        return [trial.result.run for trial in self.trials if trial.result is not None]

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines: a table of the trials, the answer, how sure it is, and the next command."""
        yield from self.findings()
        yield from self.next_steps()

    def findings(self) -> Iterator[str]:
        """The lines without the next command."""
        unit = next((trial.loss.unit for trial in self.trials if trial.loss is not None), "loss")
        rows = [["run", f"speed-up ({self.cost})", unit, "95 % interval", "within"]]
        for trial in self.trials:
            if trial.loss is None or trial.result is None:
                rows.append(["-", f"{trial.speedup:g}x", "out of reach", "", ""])
                continue
            loss = trial.loss
            interval = f"{100 * loss.low:.2f} to {100 * loss.high:.2f}"
            within = "yes" if loss.loss <= self.budget else "no"
            rows.append([str(trial.result.run), f"{trial.speedup:g}x", f"{100 * loss.loss:.2f}", interval, within])
        yield from text_table(rows).split("\n")
        yield from self._answer()

    def _answer(self) -> Iterator[str]:
        best = self.best
        if best is None or best.loss is None or best.result is None:
            smallest = self.trials[0]
            lost = (
                "" if smallest.loss is None else f", and {smallest.speedup:g}x loses {100 * smallest.loss.loss:.2f} %"
            )
            yield f"no speed-up keeps the loss within {100 * self.budget:g} %{lost}; allow more loss, or fine-tune"
            return
        yield f"largest speed-up within a loss of {100 * self.budget:g} %: {best.speedup:g}x, {best.loss.words()}"
        above = [trial for trial in self.trials if trial.speedup > best.speedup]
        if above:
            why = "is out of reach" if above[0].loss is None else "loses more"
            yield f"the next one tried, {above[0].speedup:g}x, {why}"
        if best.loss.high <= self.budget:
            yield f"sure by these {best.loss.n_images:,} images: the whole interval is within the budget"
        else:
            yield (
                f"not sure: a loss of up to {100 * best.loss.high:.2f} % agrees with these {best.loss.n_images:,} "
                "images; a smaller --max-drop, or more training images that are not calibration images, make sure"
            )

    def next_steps(self) -> Iterator[str]:
        """The next command, where a speed-up was found."""
        if self.best is not None and self.best.result is not None:
            run = self.best.result.run
            yield f"next: {command_line('finetune', run, label_options(run))}"

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "budget": self.budget, "cost": self.cost,
            "best": None if self.best is None or self.best.result is None else str(self.best.result.run),
            "trials": [
                {
                    "speedup": trial.speedup, "run": None if trial.result is None else str(trial.result.run),
                    "loss": None if trial.loss is None else trial.loss.to_json(),
                }
                for trial in self.trials
            ],
        }  # fmt: skip


def bisect(loss_at: Callable[[float], float], budget: float) -> dict[float, float]:
    """Search the largest speed-up whose loss is within a budget.

    Parameters
    ----------
    loss_at : callable
        Loss at a speed-up, larger for larger ones but for noise; infinite where it is out of reach.
    budget : float

    Returns
    -------
    dict of float to float
        Losses of all speed-ups tried, in the order of trials. From 2x the speed-up grows by half until the loss is
        above the budget or shrinks until it is not; after that the geometric mean of the bracket is tried until its
        ends are within 5 %, or nine networks were made.
    """
    tried: dict[float, float] = {}
    low, high, ratio = 1.0, math.inf, FIRST
    while len(tried) < MOST_TRIALS and ratio >= LEAST and ratio not in tried:
        tried[ratio] = loss_at(ratio)
        low, high = (max(low, ratio), high) if tried[ratio] <= budget else (low, min(high, ratio))
        if high <= low * PRECISION:
            break
        # Two digits after the point, as the names of runs and tables show it.
        ratio = round(low * STEP if math.isinf(high) else math.sqrt(low * high), 2)
    return tried


def decompose_within(
    run: str | os.PathLike[str] | RunDirectory,
    *,
    max_drop: float | str | None,
    source_run: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    device: str = "auto",
    **options: Any,
) -> BudgetResult:
    """Find the largest speed-up whose measured loss stays within a budget.

    Parameters
    ----------
    run : path or RunDirectory
        Frozen. The networks are made in runs of their own beside it: ``runs/vgg`` gives ``runs/vgg-2x`` and so on.
    max_drop : float or str
        Allowed loss, a share in (0, 1) or a text such as ``'1%'``: of accuracy on held-out training images where the
        source has labels, otherwise of images whose first class changes; of a network without class scores, of the
        variance of its outputs.
    source_run : path, optional
        Take the frozen points from this run; ``run`` then only gives the names.
    reporter : Reporter, optional
    device : str
    options
        As for :func:`decomp.pipelines.stages.decompose.decompose`, without ``speedup`` and ``plan``.

    Returns
    -------
    BudgetResult

    Raises
    ------
    DecompError

    Notes
    -----
    A stopped search goes on when it is called again: finished networks and their measured losses are read. The images
    are training images, which the original may have been trained on: its accuracy there can be higher than on new
    images, and the loss with it.
    """
    reporter, budget = reporter or Reporter(), parse.loss_budget(max_drop)
    for name in ("speedup", "plan", "plan_only"):
        if options.pop(name, None):
            rule, got = "finds the speed-up itself, by finished networks", f"--{name.replace('_', '-')} beside it"
            raise UsageError("--max-drop", rule, got=got, fix="leave one of them out")
    first = decompose_options(speedup=FIRST, **_decisive(options))
    base = RunDirectory.open(run if source_run is None else source_run)
    images, work = _held_out(base), {name: options[name] for name in ("memory", "batch_size") if name in options}
    resources = Resources.of(device, **work)
    original = loading.load_network(base, base.original_dir).to(resources.device)
    identity = from_first(images.identity)
    _require_enough_images(len(images), budget, outputs=run_outputs(base), n_images=freeze_options(base).n_images)
    survey_once(base, first, resources, require=False, reporter=reporter)
    if options.get("redo"):
        _note_redo(RunDirectory(run), _decisive(options))
    trials: dict[float, Trial] = {}

    def loss_at(ratio: float) -> float:
        member = RunDirectory(f"{RunDirectory(run)}-{ratio:g}x")
        reporter.step(f"{member}: {ratio:g} times cheaper")
        own = reporter.into(member)
        take_folder(member.path)
        try:
            result = decompose(member, speedup=ratio, source_run=base.path, device=device, reporter=own, **options)
        except TargetError as error:
            if error.thing != "--speedup":
                raise
            reporter.step(str(error))
            trials[ratio] = Trial(ratio)
            return math.inf
        # Measured by one process, while the others wait.
        loss = from_first(lambda: _measured(result.run, original, images, identity, resources.device))
        reporter.step(loss.words())
        trials[ratio] = Trial(ratio, loss, result)
        return loss.loss

    bisect(loss_at, budget)
    within = [trial for trial in trials.values() if trial.loss is not None and trial.loss.loss <= budget]
    best = max(within, key=lambda trial: trial.speedup, default=None)
    return BudgetResult(budget, sorted(trials.values(), key=lambda trial: trial.speedup), best, first.cost)


def _require_enough_images(n: int, budget: float, *, outputs: Outputs, n_images: int) -> None:
    """Refuse a budget that is less than one image."""
    if outputs.scores is not None and n * budget < 1:
        raise UsageError(
            "--max-drop", f"must be at least one of the {n} training images that no fit has used ({100 / n:.1f} %)",
            got=f"{100 * budget:.1f} %",
            fix=f"allow more, or freeze fewer than {n_images:,} images into another --run (--images): the rest is free",
        )  # fmt: skip


def _decisive(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide the result, without those of the work."""
    work = ("batch_size", "memory", "redo")
    return {name: value for name, value in options.items() if name not in work}


def _note_redo(run: RunDirectory, options: Mapping[str, Any]) -> None:
    """Note in all runs that an earlier search made beside `run` that their networks are made anew."""
    for path in sorted(run.path.parent.glob(f"{run.path.name}-*x")):
        try:
            ratio = parse.speedup(path.name.removeprefix(f"{run.path.name}-"))
        except UsageError:
            continue  # of another name
        note_redo(RunDirectory(path), decompose_options(speedup=ratio, **options))


def _held_out(base: RunDirectory) -> HeldOutImages:
    """Training images of a run's source that no fit of the run has seen."""
    options = freeze_options(base)
    frozen, _ = loading.open_frozen(base)
    with frozen:
        n_fit, drawn = fitted_images(frozen.n_images), frozen.drawn
    source = open_images(base)
    # Files of before lack the indices: they were drawn in this way.
    fitted = draw_images(source, options.n_images, options.seed) if drawn is None else torch.tensor(drawn)
    fitted = fitted[:n_fit]
    _, unseen = hold_out(len(source.train), options.seed)
    return HeldOutImages(source.train, images_outside_fits(len(source.train), fitted, unseen), options.data)


def _measured(
    run: RunDirectory, original: torch.nn.Module, images: HeldOutImages, identity: str, device: torch.device
) -> HeldOutLoss:
    """The loss as recorded in the run for the same network and images, or measured now and recorded."""
    made = {"images": identity, "network": digest_file(run.model_dir / "structure.json")}
    facts = run.config("decompose") or {}
    record = facts.get("held_out_loss") or {}
    if record.get("of") == made:
        return HeldOutLoss(**record["loss"])
    network = loading.load_network(run, run.model_dir).to(device)
    loss = held_out_loss(original, network, images, device, run_outputs(run))
    with run.lock():
        run.update_config("decompose", {**facts, "held_out_loss": {"of": made, "loss": loss.to_json()}})
    return loss
