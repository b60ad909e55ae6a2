"""Demo: all stages on a small shipped network and images that need no download.

Also the shortest example of calling the stages from Python.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from decomp.runtimes.names import lacking

from ..console.program import program
from ..console.reporter import Reporter
from ..run.directory import RunDirectory
from ..stages.decompose import decompose
from ..stages.evaluate import EvaluationResult, evaluate
from ..stages.finetune import finetune
from ..stages.freeze import freeze
from ..stages.report import ReportResult, report

MODEL, DATA, SPEEDUP, EPOCHS = "zoo:vgg-digits-large", "digits", 4.0, 3


class Result(Protocol):
    """Result of a stage."""

    def findings(self) -> Iterable[str]:
        """Human-readable summary lines without the next step."""
        ...


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo: the table of `evaluate`, its run directory and its report."""

    run: RunDirectory
    evaluation: EvaluationResult
    report: ReportResult

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield from self.evaluation.findings()
        yield f"the fine-tuned network: decomp.load({str(self.run.finetune_dir / 'best')!r})"
        yield f"all of its files: {self.run.path}; `{program()} status --run {shlex.quote(str(self.run))}` lists them"
        yield f"next: open {os.path.abspath(self.report.html)} in a browser"


def demo(run: str | os.PathLike[str] = "runs/demo", *, reporter: Reporter | None = None) -> DemoResult:
    """Freeze, decompose, fine-tune, evaluate and report; finished stages are not repeated.

    Parameters
    ----------
    run : path or RunDirectory
    reporter : Reporter, optional

    Returns
    -------
    DemoResult
    """
    reporter, directory = reporter or Reporter(), RunDirectory(run)
    reporter.step(f"demo 1 of 5: freeze {MODEL} on {DATA}")
    _report(freeze(directory, model=MODEL, data=DATA, reporter=reporter), reporter)
    reporter.step(f"demo 2 of 5: decompose, {SPEEDUP:g} times cheaper")
    _report(decompose(directory, speedup=SPEEDUP, reporter=reporter), reporter)
    reporter.step(f"demo 3 of 5: finetune, {EPOCHS} epochs")
    _report(finetune(directory, epochs=EPOCHS, reporter=reporter), reporter)
    reporter.step(f"demo 4 of 5: evaluate on the test images, time in {' and '.join(runtimes_shown())}")
    evaluation = evaluate(directory, runtime=runtimes_shown(), reporter=reporter)
    reporter.step("demo 5 of 5: report")
    return DemoResult(directory, evaluation, report(directory, reporter=reporter))


def runtimes_shown() -> list[str]:
    """The runtimes in which the demo measures: eager mode, and ONNX Runtime where it is installed."""
    return ["eager", *(["onnxruntime"] if not lacking("onnxruntime") else [])]


def _report(result: Result, reporter: Reporter) -> None:
    for line in result.findings():
        reporter.step(f"  {line}")
