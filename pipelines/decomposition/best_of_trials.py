"""Choice between planned networks by trial: the one whose outputs change least, and of equals the first."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor

from decomp.allocation.choices import LayerPlans

from ..console.options import DecomposeOptions
from ..console.reporter import Reporter
from .judge import Judge, is_better
from .session import OpenedRun, SurveyedRun
from .trial import changes_of_plan

T = TypeVar("T")


class BestOfTrials(Generic[T]):
    """The best one of the candidates that were tried so far.

    The held-out images are few: a candidate has to be surely better than those before it, so the simplest comes first.

    Parameters
    ----------
    opened : OpenedRun
    options : DecomposeOptions
    reporter : decomp.pipelines.console.reporter.Reporter

    Attributes
    ----------
    judge : decomp.pipelines.decomposition.judge.Judge
    best : object or None
        The candidate; None before one was tried.
    changes : torch.Tensor or None, shape (N,), float64
        Its change of the outputs for each held-out image.
    """

    def __init__(self, opened: OpenedRun, options: DecomposeOptions, reporter: Reporter) -> None:
        self.judge, self.options, self.reporter = Judge(opened), options, reporter
        self.best: T | None = None
        self.changes: Tensor | None = None

    def take(self, candidate: T, words: str, surveyed: SurveyedRun, plans: LayerPlans) -> bool:
        """Try a candidate, and say the change of its outputs; whether it is the best one now.

        Parameters
        ----------
        candidate : object
        words : str
            Name it in the line that is said.
        surveyed : SurveyedRun
        plans : dict of str to LayerPlan
            The sizes that its layers get.
        """
        changes = changes_of_plan(surveyed, plans, self.options, self.judge)
        self.judge.say(words, changes, self.reporter)
        taken = self.changes is None or is_better(changes, self.changes)
        if taken:
            self.best, self.changes = candidate, changes
        return taken
