"""Accuracy matrix of a run of tasks: every task's test accuracy after each later task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from decomp.errors import DecompError

from ...data.formats.json_files import read_json, write_json
from ...data.formats.task_file import TaskFile
from ...data.splits import ImageSource
from .images import open_images, test_accuracy
from .store import TaskStore

KIND = "decomp accuracy matrix"
FIX = "remove it; it is measured again"


def read(store: TaskStore) -> list[dict[str, float | None]]:
    """The rows measured so far, one after each task: accuracy by task name; None where the images were not at hand.

    Raises
    ------
    FileError
        The file is damaged.
    """
    path = store.run.tasks_dir / "accuracy.json"
    if not path.exists():
        return []
    rows = read_json(path, kind=KIND, fix=FIX, sealed=True).get("rows")
    return [dict(row) for row in rows] if isinstance(rows, list) else []


def lost(store: TaskStore) -> list[str]:
    """Names of measured tasks whose files are gone: the last ones, as each file names the one before it.

    Raises
    ------
    FileError
        The file is damaged.
    """
    rows, names = read(store), store.names()
    return [name for name in rows[-1] if name not in names] if rows else []


def measure(
    store: TaskStore, device: torch.device, given: Mapping[str, ImageSource] | None = None
) -> list[dict[str, float | None]]:
    """Measure the rows that are missing, and write the matrix.

    Parameters
    ----------
    store : TaskStore
    device : torch.device
    given : mapping of str to ImageSource, optional
        Images that are open already, by task.
    """
    tasks, rows = store.tasks(), read(store)
    if len(rows) >= len(tasks):
        return rows[: len(tasks)]
    accuracies = {}
    for number, task in enumerate(tasks, start=1):
        if number == len(tasks):  # its test images were read for its record
            accuracies[task.name] = task.facts.get("test")
            continue
        source = (given or {}).get(task.name) or _reopened(store, task)
        network = store.built(task, store.effective(tasks[:number])).to(device)
        accuracies[task.name] = None if source is None else test_accuracy(source, network, device)
    names = [task.name for task in tasks]
    for count in range(len(rows) + 1, len(tasks) + 1):
        rows.append({name: accuracies[name] for name in names[:count]})
    write_json(store.run.tasks_dir / "accuracy.json", {"rows": rows}, kind=KIND, seal=True)
    return rows


def _reopened(store: TaskStore, task: TaskFile) -> ImageSource | None:
    """The images of an earlier task, if they are still there and the same."""
    options: Mapping[str, Any] = task.facts.get("options", {})
    try:
        source = open_images(str(options.get("data")), store.input_shape)
    except DecompError:
        return None
    return source if source.digest("train") == task.facts.get("data_digest") else None
