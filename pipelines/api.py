"""The stages as ``import decomp`` offers them: the same functions as the command line's, and nothing shown by default.

Given a ``reporter``, a stage tells its steps; without one they go to the run's log alone.
"""

import functools

from decomp.pipelines.compress import compress
from decomp.pipelines.decompose import decompose as _decompose
from decomp.pipelines.evaluate import evaluate as _evaluate
from decomp.pipelines.export import export as _export
from decomp.pipelines.finetune import finetune as _finetune
from decomp.pipelines.freeze import freeze as _freeze
from decomp.pipelines.log import Reporter
from decomp.pipelines.report import compare as _compare
from decomp.pipelines.report import report as _report
from decomp.pipelines.rundir import RunDirectory
from decomp.pipelines.summary import summarise

__all__ = ["compare", "compress", "decompose", "evaluate", "export", "finetune", "freeze", "report", "summarise"]


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
