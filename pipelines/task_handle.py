"""Handle of a run that learns tasks, as ``decomp.tasks`` offers it.

>>> import decomp
>>> run = decomp.tasks.open("runs/tasks")  # doctest: +SKIP
>>> run.add("digits", data="npz:digits.npz", goal=0.9)  # doctest: +SKIP
>>> network = run.network("digits")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import fx

from ..data.splits import ImageSource
from .console.reporter import Reporter
from .continual.compact import compact
from .continual.results import AddedTask, ExportedTaskResult, TaskList, TaskReport, VerifyResult
from .continual.store import TaskStore
from .run.directory import RunDirectory
from .stages import tasks as stage

__all__ = ["TaskRun", "open"]


class TaskRun:
    """A run directory with tasks; it is made by its first task.

    Parameters
    ----------
    run : path or RunDirectory
    """

    def __init__(self, run: str | os.PathLike[str] | RunDirectory) -> None:
        self.run = RunDirectory(run)

    def __repr__(self) -> str:
        return f"TaskRun({str(self.run)!r})"

    def add(
        self, name: str, *, data: str | ImageSource, goal: float | str, reporter: Reporter | None = None, **options: Any
    ) -> AddedTask:
        """Learn a task and commit it; see :func:`decomp.pipelines.stages.tasks.add` for options and errors."""
        reporter = reporter or Reporter.for_run(self.run, quiet=True)
        return stage.add(self.run, name=name, data=data, goal=goal, reporter=reporter, **options)

    def names(self) -> list[str]:
        """Names of the committed tasks, in order."""
        return TaskStore.open(self.run).names()

    def network(self, name: str, *, compact_channels: bool = False) -> fx.GraphModule:
        """A task as an ordinary network, in evaluation mode on the CPU.

        Parameters
        ----------
        name : str
        compact_channels : bool
            Remove channels that the task does not use; outputs then differ by rounding.
        """
        store = TaskStore.open(self.run)
        network = store.network(name)
        return compact(network, store.input_shape) if compact_channels else network

    def list(self) -> TaskList:
        """Tasks, accuracies, owners and sizes."""
        return stage.listed(self.run)

    def verify(self) -> VerifyResult:
        """Compare every task with what was committed, to the last bit."""
        return stage.verify(self.run)

    def report(self) -> TaskReport:
        """Write the page of the run with its figures."""
        return stage.report(self.run, reporter=Reporter.for_run(self.run, quiet=True))

    def export(
        self, name: str, formats: str | Sequence[str] = ("pt2", "state-dict"), out: str | os.PathLike[str] | None = None
    ) -> ExportedTaskResult:
        """Write a task as an ordinary network; see :func:`decomp.pipelines.stages.tasks.export`."""
        reporter = Reporter.for_run(self.run, quiet=True)
        return stage.export(self.run, name=name, formats=formats, out=out, reporter=reporter)


def open(run: str | os.PathLike[str] | RunDirectory) -> TaskRun:
    """The run of tasks at a path, which need not exist yet.

    Parameters
    ----------
    run : path or RunDirectory
    """
    return TaskRun(run)
