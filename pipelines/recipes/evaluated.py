"""Decompose, then evaluate: tables of the finished runs, and one page that compares several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..console.reporter import Reporter
from ..distributed.process_group import number
from ..run.directory import RunDirectory
from ..stages.evaluate import EvaluationResult, evaluate
from ..stages.report import ReportResult, compare


class Result(Protocol):
    """Result of a decomposition of any kind."""

    def findings(self) -> Iterator[str] | list[str]:
        """Human-readable summary lines without the next steps."""


@dataclass(frozen=True)
class EvaluatedResult:
    """A decomposition and the evaluation of its runs.

    Attributes
    ----------
    result : Result
    evaluations : dict of str to EvaluationResult
        By path of the run.
    comparison : ReportResult or None
        The page, of two or more runs.
    """

    result: Result
    evaluations: dict[str, EvaluationResult]
    comparison: ReportResult | None = None

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield from self.findings()
        yield from self.next_steps()

    def findings(self) -> Iterator[str]:
        """The lines without the next steps."""
        yield from self.result.findings()
        for run, evaluation in self.evaluations.items():
            yield ""
            yield f"{run}:"
            yield from evaluation.findings()
        if self.comparison is not None:
            yield ""
            yield from self.comparison.findings()

    def next_steps(self) -> Iterator[str]:
        """The lines with the next steps."""
        for evaluation in self.evaluations.values():
            yield from evaluation.next_steps()
        if self.comparison is not None:
            yield from self.comparison.next_steps()

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "result": self.result, "evaluations": self.evaluations,
            "comparison": None if self.comparison is None else self.comparison.html,
        }  # fmt: skip


def evaluated(
    result: Result, runs: Sequence[RunDirectory], *, out: str, device: str = "auto", reporter: Reporter
) -> EvaluatedResult:
    """Evaluate the runs of a decomposition.

    Parameters
    ----------
    result : Result
    runs : sequence of RunDirectory
        Decomposed.
    out : str
        Folder for the page that compares the runs, where there are several.
    device : str
    reporter : Reporter

    Returns
    -------
    EvaluatedResult

    Raises
    ------
    DecompError
    """
    evaluations = {}
    for run in runs:
        own = reporter.into(run)
        own.step(f"{run}: evaluating")
        evaluations[str(run)] = evaluate(run, device=device, reporter=own)
    page = compare(runs, out=out, reporter=reporter) if len(runs) > 1 and number() == 0 else None
    return EvaluatedResult(result, evaluations, page)
