"""Handle of a run that learns tasks, as ``decomp.tasks`` offers it.

>>> import decomp
>>> run = decomp.tasks.open("runs/tasks")  # doctest: +SKIP
>>> run.add("digits", data="npz:digits.npz", goal=0.9)  # doctest: +SKIP
>>> network = run.network("digits")  # doctest: +SKIP
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import fx

from decomp.errors import UsageError, near_miss

from ..data.splits import ImageSource
from .console.options import TaskOptions
from .console.python_words import said_for_python
from .console.reporter import Reporter
from .continual.compact import compact
from .continual.results import AddedTask, ExportedTaskResult, TaskList, TaskReport, VerifyResult
from .continual.store import TaskStore
from .run.directory import RunDirectory
from .stages import tasks as stage

__all__ = ["TaskRun", "open"]

#: Options of the command line whose arguments have other names.
ARGUMENTS = {
    "lr": "learning_rate",
    "prune-lr": "prune_learning_rate",
    "format": "formats",
    "no-picking": "picking=False",
}


def _check_names(options: Mapping[str, Any]) -> None:
    """Refuse options that `add` does not have, and name the closest one."""
    own = [name for name in inspect.signature(stage.add).parameters if name not in ("run", "options")]
    names = [*own, *(entry.name for entry in fields(TaskOptions) if entry.name not in own)]
    for name in options:
        if name not in names:
            fix = near_miss(ARGUMENTS.get(name, name), names) or f"there are {', '.join(names)}"
            raise UsageError(name, "is no option of add", fix=fix)


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
        with said_for_python(ARGUMENTS):
            _check_names(options)
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
        with said_for_python(ARGUMENTS):
            return stage.export(self.run, name=name, formats=formats, out=out, reporter=reporter)


def open(run: str | os.PathLike[str] | RunDirectory) -> TaskRun:
    """The run of tasks at a path, which need not exist yet.

    Parameters
    ----------
    run : path or RunDirectory
    """
    return TaskRun(run)
