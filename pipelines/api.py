"""The stages as ``import decomp`` offers them: the same functions as the command line's, and nothing shown by default.

Given a ``reporter``, a stage tells its steps; without one they go to the run's log alone.
"""

import functools

from .console.reporter import Reporter
from .recipes.compress import compress
from .reporting.summary import summarise
from .run.directory import RunDirectory
from .stages.decompose import decompose as _decompose
from .stages.evaluate import evaluate as _evaluate
from .stages.export import export as _export
from .stages.finetune import finetune as _finetune
from .stages.freeze import freeze as _freeze
from .stages.report import compare as _compare
from .stages.report import report as _report

__all__ = [
    "compare",
    "compress",
    "decompose",
    "evaluate",
    "export",
    "finetune",
    "freeze",
    "report",
    "summarise",
]


def _quiet(stage):
    @functools.wraps(stage)
    def call(run, *arguments, reporter=None, **options):
        reporter = reporter or Reporter.for_run(RunDirectory(run), quiet=True)
        return stage(run, *arguments, reporter=reporter, **options)

    return call


freeze, decompose, finetune = _quiet(_freeze), _quiet(_decompose), _quiet(_finetune)
evaluate, export, report = _quiet(_evaluate), _quiet(_export), _quiet(_report)


@functools.wraps(_compare)
def compare(runs, *, reporter=None, **options):
    return _compare(runs, reporter=reporter or Reporter(quiet=True), **options)
