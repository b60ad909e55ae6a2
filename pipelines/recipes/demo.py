"""Demo: all stages on a small shipped network and images that need no download.

Also the shortest example of calling the stages from Python.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ..console.reporter import Reporter
from ..run.directory import RunDirectory
from ..stages.decompose import decompose
from ..stages.evaluate import EvaluationResult, evaluate
from ..stages.finetune import finetune
from ..stages.freeze import freeze

MODEL, DATA, SPEEDUP, EPOCHS = "zoo:vgg-digits", "digits", 4.0, 3


class Result(Protocol):
    """Result of a stage."""

    def lines(self) -> Iterable[str]:
        """Human-readable summary lines."""
        ...


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo: the table of `evaluate`, and its run directory."""

    run: RunDirectory
    evaluation: EvaluationResult

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield from self.evaluation.lines()
        yield f"the fine-tuned network: decomp.load({str(self.run.finetune_dir / 'best')!r})"
        yield f"all of its files: {self.run.path}"


def demo(run: str | os.PathLike[str] = "runs/demo", *, reporter: Reporter | None = None) -> DemoResult:
    """Freeze, decompose, fine-tune and evaluate; finished stages are not repeated.

    Parameters
    ----------
    run : path or RunDirectory
    reporter : Reporter, optional

    Returns
    -------
    DemoResult
    """
    reporter, directory = reporter or Reporter(), RunDirectory(run)
    reporter.step(f"1 of 4: freeze {MODEL} on {DATA}")
    _report(freeze(directory, model=MODEL, data=DATA, reporter=reporter), reporter)
    reporter.step(f"2 of 4: decompose, {SPEEDUP:g} times cheaper")
    _report(decompose(directory, speedup=SPEEDUP, reporter=reporter), reporter)
    reporter.step(f"3 of 4: finetune, {EPOCHS} epochs")
    _report(finetune(directory, epochs=EPOCHS, reporter=reporter), reporter)
    reporter.step("4 of 4: evaluate on the test images")
    return DemoResult(directory, evaluate(directory, reporter=reporter))


def _report(result: Result, reporter: Reporter) -> None:
    for line in result.lines():
        if not line.startswith("next:"):
            reporter.step(f"  {line}")
