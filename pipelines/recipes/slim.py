"""Network slimming in several passes: sparse training, pruning by scale factors and fine-tuning, each time narrower.

Z. Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017, section 3 and table 4: in
each pass the lower half of all scale factors goes, and at most half of any layer.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from decomp.criteria.ranking import FLOOR
from decomp.errors import DecompError, UsageError

from ..console import parse
from ..console.finetune_options import FINETUNE_EPOCHS, FinetuneOptions
from ..console.program import command_line, program
from ..console.prune_options import PruneOptions
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..measure.intervals import short_share
from ..pruning.plan_file import prune_options
from ..run.directory import RunDirectory
from ..stages.finetune import FinetuneResult, finetune
from ..stages.prune import PruneResult
from ..stages.train import TrainingResult, train
from .prune_run import prune_run

#: Values of the first training that the others share.
SHARED = ("epochs", "learning_rate", "batch_size", "schedule")


@dataclass(frozen=True)
class Pass:
    """Results of one pass, all in one run directory."""

    run: RunDirectory
    trained: TrainingResult
    pruned: PruneResult
    tuned: FinetuneResult


@dataclass(frozen=True)
class SlimResult:
    """Results of all passes, the first one first."""

    passes: list[Pass]

    @property
    def run(self) -> RunDirectory:
        """The run directory of the last pass."""
        return self.passes[-1].run

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines: a table with a row for each pass."""
        first = self.passes[0].pruned.facts
        rows = [["run", "trained", "pruned", "fine-tuned", "MACs", "", "parameters", ""]]
        for entry in self.passes:
            f, tuned = entry.pruned.facts, entry.tuned.facts
            shares = (entry.trained.record["accuracy"]["validation"], tuned["before"], tuned["after"])
            row = [str(entry.run), *(short_share(share, tuned["n_validation"]) for share in shares)]
            for cost in ("macs", "params"):
                row += [f"{f[f'{cost}_after'] / 1e6:,.3f} M", f"{first[f'{cost}_before'] / f[f'{cost}_after']:.2f}x"]
            rows.append(row)
        yield from text_table(rows).split("\n")
        n_validation = self.passes[-1].tuned.facts["n_validation"]
        yield f"accuracies on {n_validation:,} held-out training images; costs are relative to the first network"
        for entry in self.passes:
            yield f"next: {command_line('evaluate', entry.run)}"
        if len(self.passes) > 1:
            yield f"next: {program()} compare {' '.join(shlex.quote(str(entry.run)) for entry in self.passes)}"

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        passes = [
            {"run": str(entry.run), "training": entry.trained.record, "pruning": dict(entry.pruned.facts),
             "tuning": entry.tuned.facts}
            for entry in self.passes
        ]  # fmt: skip
        return {"run": str(self.run), "passes": passes}


@contextmanager
def _way_out(directory: RunDirectory) -> Iterator[None]:
    """Reword the errors of a pass: slimming has no option that replaces what a stage did before."""
    fix = f"remove {directory} and the directories of later passes"
    try:
        yield
    except DecompError as error:
        error.reword(lambda text: re.sub(r"\b(?:give|use) --redo\b", fix, text))
        raise


def _require_reachable(options: PruneOptions) -> None:
    """Refuse a ratio that the limits of the layers never allow, before the first training.

    Raises
    ------
    UsageError
    """
    ratio, floor = options.ratio, options.floor if options.floor is not None else FLOOR
    assert ratio is not None
    if options.remove_branches or ratio <= min(options.cap, 1 - floor + 1e-9):
        return
    name, limit = ("--cap", options.cap) if options.cap <= 1 - floor else ("--floor", floor)
    words = "a layer loses more than --cap" if name == "--cap" else "a layer keeps less than --floor"
    rule = f"cannot be reached: {words} {limit:g} nowhere"
    raise UsageError("--ratio", rule, got=f"{ratio:g}", fix=f"take a smaller ratio, or loosen {name}")


def slim(
    run: str | os.PathLike[str] | RunDirectory, model: str, *, data: str | None = None, passes: int = 3,
    sparsity: float = 1e-4, proximal: bool = False, ratio: float = 0.5, cap: float = 0.5, floor: float | None = None,
    remove_branches: bool = False,
    epochs: int | None = None, learning_rate: float | None = None, batch_size: int | None = None,
    schedule: str | None = None, tune_epochs: int = FINETUNE_EPOCHS,
    tune_learning_rate: float = FinetuneOptions.learning_rate, n_images: int = 500, seed: int = 0,
    device: str = "auto", reporter: Reporter | None = None,
) -> SlimResult:  # fmt: skip
    """Train with sparsity, prune by scale factors and fine-tune, and do the same with the result.

    Parameters
    ----------
    run : path or RunDirectory
        ``runs/slim`` gives the run directories ``runs/slim-pass1``, ``runs/slim-pass2`` and so on.
    model, data, sparsity, proximal, epochs, learning_rate, batch_size, schedule
        Of each training, as for :func:`decomp.pipelines.stages.train.train`. The second and later passes train the
        fine-tuned network of the pass before.
    passes : int
    ratio, cap, floor, remove_branches
        Of each pruning, as for :func:`decomp.pipelines.stages.prune.prune`.
    tune_epochs, tune_learning_rate
        Of each fine-tuning.
    n_images : int
        Calibration images on which outputs are compared.
    seed : int
    device : str
    reporter : Reporter, optional

    Returns
    -------
    SlimResult

    Raises
    ------
    DecompError
        Of a stage. What was finished stays: the same call goes on from there.
    """
    passes = parse.number("--passes", int, 1)(passes)
    pruning: dict[str, Any] = {"criterion": "bn-scale", "ratio": ratio, "cap": cap, "floor": floor}
    pruning["remove_branches"] = remove_branches
    checked = prune_options(None, **pruning)  # a mistake in these must not cost a training
    _require_reachable(checked)
    FinetuneOptions(epochs=tune_epochs, learning_rate=tune_learning_rate)
    reporter = reporter or Reporter()
    training: dict[str, Any] = {
        "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "schedule": schedule
    }  # fmt: skip
    done: list[Pass] = []
    for number in range(1, passes + 1):
        directory = RunDirectory(f"{RunDirectory(run)}-pass{number}")
        inner = reporter.into(directory)
        reporter.step(f"pass {number} of {passes}: {directory}")
        with _way_out(directory):
            trained = train(
                model, data=data, run=directory, sparsity=sparsity, proximal=proximal, seed=seed, device=device,
                reporter=inner, **training,
            )  # fmt: skip
            pruned = prune_run(directory, frozen={"n_images": n_images}, device=device, reporter=inner, **pruning)
            tuned = finetune(
                directory,
                epochs=tune_epochs,
                learning_rate=tune_learning_rate,
                seed=seed,
                device=device,
                reporter=inner,
            )
        done.append(Pass(directory, trained, pruned, tuned))
        options = trained.record["options"]
        model, data = str(directory.finetune_dir / "best"), options["data"]
        training = {name: options[name] for name in SHARED}
    return SlimResult(done)
