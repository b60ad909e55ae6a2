"""Stages and recipes as ``import decomp`` offers them: the functions of the command line.

They print their steps to standard error as the commands do; ``quiet=True`` or a reporter of one's own changes that.
Messages name arguments, not options of the command line.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from decomp.errors import UsageError, near_miss

from .console.parse import flag
from .console.python_words import said_for_python
from .console.reporter import Reporter
from .recipes.compress import compress
from .recipes.loss_budget import BudgetResult
from .recipes.loss_budget import decompose_within as _decompose_within
from .recipes.prune_network import prune
from .recipes.prune_run import prune_run as _prune_run
from .recipes.slim import SlimResult
from .recipes.slim import slim as _slim
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
from .stages.train import TrainingResult
from .stages.train import train as _train

__all__ = [
    "compare", "compress", "decompose", "decompose_within", "evaluate", "export", "finetune", "folded", "freeze",
    "prune", "prune_run", "report", "sensitivity", "slim", "summarise", "train", "trainable",
]  # fmt: skip

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


#: Options whose name in Python is not that of the command line.
COMMAND_LINE_NAMES = {
    "images": "n_images", "points": "n_points", "module": "part", "leaf": "leaves", "lr": "learning_rate",
    "format": "formats", "from": "source_run", "layout": "latency_layout", "batch-size": "latency_batch",
    "reinit": "method", "next": "next_slice", "tune-lr": "tune_learning_rate",
}  # fmt: skip
#: How the reporter is described, and what follows it.
REPORTER_DOC = "    reporter : Reporter, optional\n"
QUIET_DOC = "    quiet : bool\n        Without lines and progress bars, which are written to standard error.\n"


def _check_names(stage: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a stage does not have, and name the closest one."""
    names = [name for name in inspect.signature(stage).parameters if name not in ("run", "reporter")]
    for name in options:
        if name not in names:
            known = COMMAND_LINE_NAMES.get(name)
            fix = f"did you mean {known}" if known in names else near_miss(name, names)
            rule = f"is no option of {stage.__name__}"
            raise UsageError(name, rule, fix=fix or f"there are {', '.join(names)}")


def _names(stage: Callable[..., Any]) -> dict[str, str]:
    """Arguments of a stage by the option of the command line, where the two differ."""
    known = inspect.signature(stage).parameters
    return {option: name for option, name in COMMAND_LINE_NAMES.items() if name in known and option not in known}


def _documented(stage: Callable[..., Any], call: Callable[..., Any]) -> None:
    """Add ``quiet`` to the signature and the documentation of a function."""
    signature = inspect.signature(stage)
    quiet = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation="bool")
    parameters = [entry for entry in signature.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
    rest = [entry for entry in signature.parameters.values() if entry.kind is entry.VAR_KEYWORD]
    call.__signature__ = signature.replace(parameters=[*parameters, quiet, *rest])  # type: ignore[attr-defined]
    call.__doc__ = (stage.__doc__ or "").replace(REPORTER_DOC, REPORTER_DOC + QUIET_DOC, 1)


def _reporter(run: str | os.PathLike[str] | RunDirectory, quiet: bool) -> Reporter:
    return Reporter.for_run(RunDirectory(run), quiet=flag("quiet", quiet))


def _offered(stage: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    @functools.wraps(stage)
    def call(
        run: str | os.PathLike[str] | RunDirectory, *arguments: Any, reporter: Reporter | None = None,
        quiet: bool = False, **options: Any,
    ) -> Result:  # fmt: skip
        with said_for_python(_names(stage)):
            _check_names(stage, options)
            required = {
                name: None for name, parameter in inspect.signature(stage).parameters.items()
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
                and name not in options
            }  # fmt: skip
            options |= required  # each is refused by the stage with its own line
            reporter = reporter or _reporter(run, quiet)
            return cast("Callable[..., Result]", stage)(run, *arguments, reporter=reporter, **options)

    _documented(stage, call)
    return cast("Callable[Parameters, Result]", call)


freeze = _offered(_freeze)
decompose = _offered(_decompose)
finetune = _offered(_finetune)
evaluate = _offered(_evaluate)
export = _offered(_export)
report = _offered(_report)
sensitivity = _offered(_sensitivity)


@functools.wraps(_decompose_within)
def decompose_within(
    run: str | os.PathLike[str] | RunDirectory, *, reporter: Reporter | None = None, quiet: bool = False, **options: Any
) -> BudgetResult:
    with said_for_python(_names(_decompose)):
        _check_names(_decompose, {name: value for name, value in options.items() if name != "max_drop"})
        reporter = reporter or _reporter(run, quiet)
        return _decompose_within(run, reporter=reporter, **{"max_drop": None, **options})


@functools.wraps(_prune_run)
def prune_run(
    run: str | os.PathLike[str] | RunDirectory, *, reporter: Reporter | None = None, quiet: bool = False, **options: Any
) -> PruneResult:
    with said_for_python({**_names(_freeze), **_names(_prune)}):
        own = {"model", "data", "frozen"}
        _check_names(_prune, {name: value for name, value in options.items() if name not in own})
        reporter = reporter or _reporter(run, quiet)
        return _prune_run(run, reporter=reporter, **options)


@functools.wraps(_train)
def train(
    model: str | None = None, *, reporter: Reporter | None = None, quiet: bool = False, **options: Any
) -> TrainingResult:
    with said_for_python(_names(_train)):
        _check_names(_train, {name: value for name, value in options.items() if name != "run"})
        _check_named(model)
        run = options.get("run")
        reporter = reporter or (Reporter(quiet=flag("quiet", quiet)) if run is None else _reporter(run, quiet))
        return _train(cast("str", model), reporter=reporter, **options)


@functools.wraps(_slim)
def slim(
    run: str | os.PathLike[str] | RunDirectory, model: str | None = None, *, reporter: Reporter | None = None,
    quiet: bool = False, **options: Any,
) -> SlimResult:  # fmt: skip
    with said_for_python(_names(_slim)):
        _check_names(_slim, options)
        _check_named(model)
        return _slim(run, cast("str", model), reporter=reporter or _reporter(run, quiet), **options)


def _check_named(model: object) -> None:
    if not isinstance(model, str):
        raise UsageError(
            "model", "must be the name of a network", got=repr(model)[:60], fix="give such as zoo:vgg-digits"
        )


@functools.wraps(_compare)
def compare(
    runs: Sequence[str | os.PathLike[str] | RunDirectory], *, reporter: Reporter | None = None, quiet: bool = False,
    **options: Any,
) -> ReportResult:  # fmt: skip
    with said_for_python({}):
        return _compare(runs, reporter=reporter or Reporter(quiet=flag("quiet", quiet)), **options)


for _stage, _call in (
    (_decompose_within, decompose_within), (_prune_run, prune_run), (_compare, compare), (_train, train), (_slim, slim),
):  # fmt: skip
    _documented(_stage, _call)
