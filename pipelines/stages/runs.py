"""Stage ``runs``: the run directories below a folder, one line each. Only reads, and does not import torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decomp.errors import DecompError, FileError, MissingError

from ...data.formats.json_files import read_json
from ..console.program import command_line, program
from ..console.text_table import text_table
from ..console.words import counted
from ..measure.intervals import short_share
from ..run.directory import RunDirectory
from ..run.networks import existing


@dataclass(frozen=True)
class RunLine:
    """One run directory.

    Attributes
    ----------
    run : str
    model : str
    state : str
        Its most advanced network or stage, in words.
    speedup : float or None
        Of the counted cost, of its most advanced network.
    top1 : float or None
        Accuracy of that network as `evaluate` measured it, on `n_images` images; None where it was not measured.
    n_images : int
    problem : str
        Why the run cannot be read; empty otherwise.
    """

    run: str
    model: str = ""
    state: str = ""
    speedup: float | None = None
    top1: float | None = None
    n_images: int = 0
    problem: str = ""


@dataclass(frozen=True)
class RunsResult:
    """Result of the stage: the run directories in the order of their paths."""

    folder: str
    runs: list[RunLine]

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        readable = [line for line in self.runs if not line.problem]
        if readable:
            rows = [["run", "network", "state", "speed-up", "top-1"]]
            for line in readable:
                speedup = "-" if line.speedup is None else f"{line.speedup:.2f}x"
                share = "-" if line.top1 is None else short_share(line.top1, line.n_images)
                rows.append([line.run, line.model, line.state, speedup, share])
            yield from text_table(rows, left=3).split("\n")
        yield from (f"{line.run}: {line.problem}" for line in self.runs if line.problem)
        if readable:
            yield f"next: {command_line('status', readable[-1].run)}"
        else:
            yield f"{self.folder}: {counted(len(readable), 'run directory', 'run directories')}"
            yield f"next: {program()} freeze --model … --data … --run {Path(self.folder, 'NAME')}"

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"folder": self.folder, "runs": [asdict(line) for line in self.runs]}


def runs(folder: str | os.PathLike[str] = "runs") -> RunsResult:
    """List the run directories below a folder; the folder itself may be one.

    Parameters
    ----------
    folder : path

    Returns
    -------
    RunsResult

    Raises
    ------
    FileError
        There is no such folder.
    """
    place = Path(folder)
    if not place.is_dir():
        fix = "name the folder that your run directories lie in"
        raise (FileError if place.exists() else MissingError)(place, "there is no such folder", fix=fix)
    return RunsResult(str(place), [_line(path) for path in _run_directories(place)])


def _run_directories(folder: Path) -> list[Path]:
    """Folders that hold a run.json; nothing in them is looked at, and hidden folders and links are left out."""
    found = []
    for path, folders, files in os.walk(folder):
        if "run.json" in files:
            found.append(Path(path))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)


def _line(path: Path) -> RunLine:
    try:
        run = RunDirectory.open(path, of_tasks=True)
        stages = run.read_config()["stages"]
        asked = next((stages[name].get("asked") or {} for name in ("freeze", "train", "tasks") if name in stages), {})
        networks = existing(run)
        if not networks:
            state = next((words for stage, words in _BEGUN.items() if stage in stages), "empty")
            if "tasks" in stages:
                state = counted(len(list(run.tasks_dir.glob("[0-9][0-9][0-9]_*.safetensors"))), "task")
            return RunLine(str(path), str(asked.get("model", "")), state)
        label = networks[-1].label
        speedup, top1, n_images = _measured(run, label)
        if speedup is None:
            speedup = _counted(stages)
        state = label
        if label == "original":
            state = next((words for stage, words in _COMPRESSING.items() if stage in stages), "frozen")
        return RunLine(str(path), str(asked.get("model", "")), state, speedup, top1, n_images)
    except DecompError as error:
        return RunLine(str(path), problem=str(error).removeprefix(f"{path}: "))


#: States of a run without any network.
_BEGUN = {"freeze": "freeze begun", "train": "train begun"}


#: States of a run that holds the original network alone.
_COMPRESSING = {"decompose": "decompose begun", "prune": "prune begun"}


def _counted(stages: dict[str, dict[str, Any]]) -> float | None:
    """The speed-up of the decomposed or pruned network, by the record of its stage."""
    for stage in ("decompose", "prune"):
        record = stages.get(stage) or {}
        if record.get("macs_before") and record.get("macs_after"):
            return float(record["macs_before"] / record["macs_after"])
    return None


def _measured(run: RunDirectory, label: str) -> tuple[float | None, float | None, int]:
    """Counted speed-up, accuracy and number of images of a network in report.json."""
    try:
        report = read_json(run.report_json, kind="decomp report")
        row = next(row for row in report["rows"] if row["network"] == label)
        return (None if label == "original" else row["counted_speedup"]), row["top1"], report["conditions"]["n_images"]
    except (FileError, KeyError, TypeError, StopIteration):
        return None, None, 0
