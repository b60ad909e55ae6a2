"""Results of `tasks`: the list of tasks with their sizes, an added task, verification, export."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from decomp.schemes import cpg_owners

from ...data.formats.task_file import TaskFile
from ..console.program import command_line
from ..console.text_table import text_table
from ..console.words import counted
from ..measure.intervals import short_share
from ..run.directory import RunDirectory
from . import matrix
from .exports import ExportedTask, TaskSizes
from .store import TaskStore, assembled
from .verification import UNREADABLE, Verified

PUT_BACK = "put a copy of the damaged file back; the tasks before it can be used meanwhile"


@dataclass(frozen=True, eq=False)
class TaskList:
    """The tasks of a run.

    Attributes
    ----------
    tasks : list of dict
        One per task: ``name``, ``number``, ``classes``, ``width``, ``status``, ``goal``, ``validation``, ``at_commit``
        and ``now`` (test accuracies, None without test images), ``task_ratio``, ``shared_ratio``, ``released``.
    rows : list of dict
        Accuracy matrix: test accuracy by task after each task.
    owners : dict of str to dict of int to float
        Share of each owner by layer; 0 is free.
    totals : dict
        ``width``, ``parameters`` of the shared layers and at width 1, their ``expansion``, ``free`` share, ``bytes`` of
        all task files and ``bytes_independent`` of as many networks of the base's size.
    ladders : dict of str to list of dict
        Compactness and accuracy of each rung, by task.
    unreadable : dict of str to str
        The task with a damaged file and those after it, with the reason.
    """

    run: RunDirectory
    tasks: list[dict[str, Any]]
    rows: list[dict[str, float | None]]
    owners: dict[str, dict[int, float]]
    totals: dict[str, float]
    ladders: dict[str, list[dict[str, float]]]
    unreadable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, store: TaskStore) -> TaskList:
        """Read the list from the files of a run; all other fields are of the tasks before a damaged file."""
        tasks, unreadable = store.readable()
        rows = matrix.read(store)[: len(tasks)]
        base = {layer: store.base.get_submodule(layer).weight.numel() for layer in store.family(False).layers}  # type: ignore[operator]
        if not tasks:
            totals = {"width": 1.0, "parameters": sum(base.values()), "parameters_base": sum(base.values()),
                      "expansion": 1.0, "free": 1.0, "bytes": 0.0, "bytes_independent": 0.0}  # fmt: skip
            return cls(store.run, [], [], {}, totals, {}, unreadable)
        _, owners = assembled(tasks)
        shares = {layer: cpg_owners.shares({layer: owner}) for layer, owner in owners.items()}
        count = sum(owner.numel() for owner in owners.values())
        whole = sum(value.numel() * value.element_size() for value in store.base.state_dict().values())
        totals = {
            "width": tasks[-1].width, "parameters": count, "parameters_base": sum(base.values()),
            "expansion": count / sum(base.values()), "free": cpg_owners.shares(owners)[cpg_owners.FREE],
            "bytes": float(sum(path.stat().st_size for path in store.paths()[: len(tasks)])),
            "bytes_independent": float(whole * len(tasks)),
        }  # fmt: skip
        lines = [_line(task, rows) for task in tasks]
        ladders = {task.name: task.facts["ladder"] for task in tasks}
        return cls(store.run, lines, rows, shares, totals, ladders, unreadable)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield from (f"{name}: {UNREADABLE} ({reason})" for name, reason in self.unreadable.items())
        if self.unreadable:
            yield PUT_BACK
        if not self.tasks:
            if not self.unreadable:
                yield "no task is committed yet"
            return
        header = ["task", "classes", "goal", "status", "validation", "at commit", "now", "own", "picked", "width"]
        table = [header, *(_cells(task) for task in self.tasks)]
        yield text_table(table)
        yield "at commit, now: accuracy on the test images; own: weights of the task, 1 is all of the first width;"
        yield "picked: share of earlier tasks' weights that it uses"
        missed = [task["name"] for task in self.tasks if task["status"] == "met" and task["validation"] < task["goal"]]
        if missed:
            yield (
                f"met by {', '.join(missed)} within one standard error of the accuracy on its held-out images "
                "(validation); --strict of tasks add does not allow that"
            )
        t = self.totals
        weights = f"{t['parameters']:,.0f} shared weights, {t['expansion']:.2f} times those of the first width"
        yield f"{weights}; {100 * t['free']:.1f} % are free"
        yield (
            f"files of the tasks: {_size(t['bytes'])}; {counted(len(self.tasks), 'independent network')}: "
            f"{_size(t['bytes_independent'])}"
        )

    def to_json(self) -> dict[str, Any]:
        """The list as plain data."""
        return {**{key: value for key, value in vars(self).items() if key != "run"}, "run": str(self.run)}

    def matrix_lines(self) -> Iterator[str]:
        """The accuracy matrix as a table: one line per task, one column after each task."""
        names = [task["name"] for task in self.tasks]
        header = ["accuracy of", *(f"after {name}" for name in names[: len(self.rows)])]
        rows = [[name, *(_percent(row.get(name)) if name in row else "" for row in self.rows)] for name in names]
        yield text_table([header, *rows])


def _line(task: TaskFile, rows: list[dict[str, float | None]]) -> dict[str, Any]:
    facts = task.facts
    last = rows[-1] if rows else {}
    return {
        "name": task.name, "number": task.number, "classes": task.n_classes, "width": task.width,
        **{key: facts.get(key) for key in ("status", "goal", "tolerance", "validation", "n_validation", "task_ratio",
                                           "shared_ratio", "independent", "attempts", "n_test")},
        "released": facts.get("sparsity"), "at_commit": facts.get("test"), "now": last.get(task.name),
    }  # fmt: skip


def _cells(task: dict[str, Any]) -> list[str]:
    n_test = task["n_test"] or 0
    accuracies = [
        "–" if task[key] is None else short_share(task[key], n_test) for key in ("at_commit", "now")
    ]  # fmt: skip
    picked = "–" if task["shared_ratio"] is None else f"{task['shared_ratio']:.2f}"
    return [
        task["name"], str(task["classes"]), _percent(task["goal"]), task["status"],
        short_share(task["validation"], task["n_validation"]), *accuracies, f"{task['task_ratio']:.3f}", picked,
        f"{task['width']:g}",
    ]  # fmt: skip


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.2f} MiB" if n_bytes >= 2**20 / 10 else f"{n_bytes / 2**10:.1f} KiB"


@dataclass(frozen=True, eq=False)
class AddedTask:
    """A task that was added, with the list of all; ``already_done`` where it was there before."""

    run: RunDirectory
    tasks: TaskList
    name: str
    already_done: bool = False

    @property
    def task(self) -> dict[str, Any]:
        """The line of the task in the list."""
        return next(task for task in self.tasks.tasks if task["name"] == self.name)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        if self.already_done:
            yield f"task {self.name} is in the run already, learned with these options; nothing to do"
        yield from self.tasks.lines()
        task = self.task
        if task["status"] != "met":
            reached = short_share(task["validation"], task["n_validation"])
            yield (
                f"task {self.name} is below its goal: {reached} at the largest width, the goal is "
                f"{_percent(task['goal'])}; another run with a larger --max-width or more epochs may reach it"
            )
        yield f"next: {command_line('tasks verify', self.run)}"

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"name": self.name, "already_done": self.already_done, **self.tasks.to_json()}


@dataclass(frozen=True, eq=False)
class VerifyResult:
    """Result of `verify`, one entry per task."""

    run: RunDirectory
    tasks: list[Verified]

    @property
    def good(self) -> bool:
        """Whether all tasks are those that were committed."""
        return all(task.good for task in self.tasks)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield from (task.words() for task in self.tasks)
        if not self.tasks:
            yield "no task is committed yet"
            return
        n_good = sum(task.good for task in self.tasks)
        are = "task is as it was" if len(self.tasks) == 1 else "tasks are as they were"
        yield f"{n_good} of {len(self.tasks)} {are} committed"
        if any(task.state == UNREADABLE for task in self.tasks):
            yield PUT_BACK

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"run": str(self.run), "good": self.good, "tasks": [asdict(task) for task in self.tasks]}


@dataclass(frozen=True)
class TaskReport:
    """Files of a report: page, folder of the figures, names of these."""

    html: str
    folder: str
    figures: list[str]

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield f"report: {self.html}"
        yield f"figures and numbers: {self.folder} ({', '.join(self.figures)})"


@dataclass(frozen=True)
class ExportedTaskResult:
    """Result of `export`: files, and sizes of the network with and without unused channels."""

    name: str
    files: list[ExportedTask]
    sizes: TaskSizes

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        for file in self.files:
            size, off = f"{file.n_bytes / 2**10:,.0f} KiB", f"{file.difference:.1g}"
            yield f"{file.path} ({size}), checked: outputs differ by at most {off}"
        s = self.sizes
        sizes = f"{s.parameters_compact:,} of {s.parameters:,} parameters"
        sizes += f" and {s.macs_compact:,} of {s.macs:,} multiply-accumulates"
        smaller = s.parameters_compact < s.parameters
        why = "channels that the task does not use are removed" if smaller else "the task uses every channel"
        yield f"{sizes}: {why}"
