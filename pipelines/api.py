"""Stages and recipes as ``import decomp`` offers them: the functions of the command line, without output by default.

With a ``reporter`` a stage prints its steps; without one they go only to the run's log.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from decomp.errors import UsageError, near_miss

from .console.reporter import Reporter
from .recipes.compress import compress
from .recipes.loss_budget import BudgetResult
from .recipes.loss_budget import decompose_within as _decompose_within
from .recipes.prune_network import prune
from .recipes.prune_run import prune_run as _prune_run
from .recipes.trainable import folded, trainable
from .reporting.summary import summarise
from .run.directory import RunDirectory
from .stages.decompose import decompose as _decompose
from .stages.evaluate import evaluate as _evaluate
from .stages.export import export as _export
from .stages.finetune import finetune as _finetune
from .stages.freeze import freeze as _freeze
from .stages.prune import PruneResult
from .stages.prune import prune as _prune
from .stages.report import ReportResult
from .stages.report import compare as _compare
from .stages.report import report as _report
from .stages.sensitivity import sensitivity as _sensitivity

__all__ = [
    "compare", "compress", "decompose", "decompose_within", "evaluate", "export", "finetune", "folded", "freeze",
    "prune", "prune_run", "report", "sensitivity", "summarise", "trainable",
]  # fmt: skip

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


#: Options whose name in Python is not that of the command line.
COMMAND_LINE_NAMES = {
    "images": "n_images", "points": "n_points", "module": "part", "leaf": "leaves", "lr": "learning_rate",
    "format": "formats", "from": "source_run", "layout": "latency_layout",
}  # fmt: skip


def _check_names(stage: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a stage does not have, and name the closest one."""
    names = [name for name in inspect.signature(stage).parameters if name not in ("run", "reporter")]
    for name in options:
        if name not in names:
            known = COMMAND_LINE_NAMES.get(name)
            fix = f"did you mean {known}" if known in names else near_miss(name, names)
            rule = f"is no option of {stage.__name__}"
            raise UsageError(name, rule, fix=fix or f"there are {', '.join(names)}")


def _without_output(stage: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    @functools.wraps(stage)
    def call(
        run: str | os.PathLike[str] | RunDirectory, *arguments: Any, reporter: Reporter | None = None, **options: Any
    ) -> Result:
        _check_names(stage, options)
        required = {
            name: None for name, parameter in inspect.signature(stage).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty and name not in options
        }  # fmt: skip
        options |= required  # each is refused by the stage with its own line
        reporter = reporter or Reporter.for_run(RunDirectory(run), quiet=True)
        return cast("Callable[..., Result]", stage)(run, *arguments, reporter=reporter, **options)

    return cast("Callable[Parameters, Result]", call)


freeze = _without_output(_freeze)
decompose = _without_output(_decompose)
finetune = _without_output(_finetune)
evaluate = _without_output(_evaluate)
export = _without_output(_export)
report = _without_output(_report)
sensitivity = _without_output(_sensitivity)


@functools.wraps(_decompose_within)
def decompose_within(
    run: str | os.PathLike[str] | RunDirectory, *, reporter: Reporter | None = None, **options: Any
) -> BudgetResult:
    _check_names(_decompose, {name: value for name, value in options.items() if name != "max_drop"})
    reporter = reporter or Reporter.for_run(RunDirectory(run), quiet=True)
    return _decompose_within(run, reporter=reporter, **{"max_drop": None, **options})


@functools.wraps(_prune_run)
def prune_run(
    run: str | os.PathLike[str] | RunDirectory, *, reporter: Reporter | None = None, **options: Any
) -> PruneResult:
    own = {"model", "data", "frozen"}
    _check_names(_prune, {name: value for name, value in options.items() if name not in own})
    reporter = reporter or Reporter.for_run(RunDirectory(run), quiet=True)
    return _prune_run(run, reporter=reporter, **options)


@functools.wraps(_compare)
def compare(
    runs: Sequence[str | os.PathLike[str] | RunDirectory], *, reporter: Reporter | None = None, **options: Any
) -> ReportResult:
    return _compare(runs, reporter=reporter or Reporter(quiet=True), **options)
