"""Demo of tasks: five tasks of two digits each, learned one after another in one small network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data import standard
from ...data.formats.atomic import commit
from ..console.reporter import Reporter
from ..continual.results import TaskList, TaskReport, VerifyResult
from ..run.directory import RunDirectory
from ..stages.tasks import add, listed, report, verify

MODEL, GOAL = "zoo:vgg-digits", 0.97
DIGITS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
#: A fraction of the published epochs: the images are few and easy.
OPTIONS: dict[str, Any] = {
    "epochs": 6,
    "prune_epochs": 3,
    "retrain_epochs": 4,
    "ladder": (0.5, 0.8, 0.9),
    "planned": len(DIGITS),
}


@dataclass(frozen=True)
class TaskDemoResult:
    """Result of the demo: the list of tasks, their verification and the report."""

    tasks: TaskList
    verified: VerifyResult
    report: TaskReport

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield from self.tasks.lines()
        yield "accuracy on the test images of each task, after each task:"
        yield from self.tasks.matrix_lines()
        yield from self.verified.lines()
        yield f"next: open {os.path.abspath(self.report.html)} in a browser"


def task_demo(run: str | os.PathLike[str] = "runs/demo-tasks", *, reporter: Reporter | None = None) -> TaskDemoResult:
    """Learn five tasks, verify all and write the report; tasks that are learned are not repeated.

    Parameters
    ----------
    run : path or RunDirectory
        The images of the tasks are written into it.
    reporter : Reporter, optional
    """
    reporter, directory = reporter or Reporter(), RunDirectory.create(run, of_tasks=True)
    for number, digits in enumerate(DIGITS, start=1):
        name = "-".join(map(str, digits))
        reporter.step(f"demo {number} of {len(DIGITS)}: the digits {' and '.join(map(str, digits))}")
        data, model = _images(directory, name, digits), MODEL if number == 1 else None
        add(directory, name=name, data=data, goal=GOAL, model=model, reporter=reporter, **OPTIONS)
    return TaskDemoResult(listed(directory), verify(directory), report(directory, reporter=reporter))


def _images(run: RunDirectory, name: str, digits: tuple[int, ...]) -> str:
    """The images of some digits as a file of arrays with classes from 0; its name as a source."""
    path = run.path / "images" / f"{name}.npz"
    if not path.is_file():
        content = standard.digits()
        assert content.test is not None
        arrays: dict[str, np.ndarray] = {}
        for part, (pixels, labels) in (("train", content.train), ("test", content.test)):
            assert labels is not None
            chosen = torch.isin(labels, torch.tensor(digits))
            arrays[f"x_{part}"] = (pixels[chosen] / content.normalisation.scale).numpy().astype(np.float32)
            arrays[f"y_{part}"] = np.searchsorted(digits, labels[chosen].numpy())
        mean, std = (np.array(values) for values in (content.normalisation.mean, content.normalisation.std))
        with commit(path) as written:
            np.savez(written, mean=mean, std=std, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"
