"""Stages and recipes as ``import decomp`` offers them: the functions of the command line, without output by default.

With a ``reporter`` a stage prints its steps; without one they go only to the run's log.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from .console.reporter import Reporter
from .recipes.compress import compress
from .reporting.summary import summarise
from .run.directory import RunDirectory
from .stages.decompose import decompose as _decompose
from .stages.evaluate import evaluate as _evaluate
from .stages.export import export as _export
from .stages.finetune import finetune as _finetune
from .stages.freeze import freeze as _freeze
from .stages.report import ReportResult
from .stages.report import compare as _compare
from .stages.report import report as _report

__all__ = ["compare", "compress", "decompose", "evaluate", "export", "finetune", "freeze", "report", "summarise"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _without_output(stage: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    @functools.wraps(stage)
    def call(
        run: str | os.PathLike[str] | RunDirectory, *arguments: Any, reporter: Reporter | None = None, **options: Any
    ) -> Result:
        reporter = reporter or Reporter.for_run(RunDirectory(run), quiet=True)
        return cast("Callable[..., Result]", stage)(run, *arguments, reporter=reporter, **options)

    return cast("Callable[Parameters, Result]", call)


freeze = _without_output(_freeze)
decompose = _without_output(_decompose)
finetune = _without_output(_finetune)
evaluate = _without_output(_evaluate)
export = _without_output(_export)
report = _without_output(_report)


@functools.wraps(_compare)
def compare(
    runs: Sequence[str | os.PathLike[str] | RunDirectory], *, reporter: Reporter | None = None, **options: Any
) -> ReportResult:
    return _compare(runs, reporter=reporter or Reporter(quiet=True), **options)
