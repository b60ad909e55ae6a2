"""Tables of trainings in runs: epochs with the events of a scheme, on/off map of filters, results."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from decomp.errors import FileError

from ...data.formats.json_files import read_json
from ..run.directory import RunDirectory
from .collect import Collector
from .tables import Table

TRAINING_COLUMNS = ("run", "epoch", "loss", "validation_accuracy", "seconds", "live_filters", "event")
RESULT_COLUMNS = (
    "run", "scheme", "steps", "validation", "test", "best_epoch", "best_validation", "best_test", "seconds_per_epoch",
    "n_validation", "n_test",
)  # fmt: skip
EVENT_COLUMNS = (
    "epoch", "event", "filters", "overlap_before", "overlap_after", "max_cosine", "accuracy_before", "accuracy_after",
    "layers",
)  # fmt: skip


def training_record(run: RunDirectory) -> dict[str, Any] | None:
    """The record beside the weights that were trained in a run; None where there is none of this version."""
    try:
        record = read_json(run.trained_weights.with_suffix(".json"), kind="decomp weights")
    except FileError:
        return None
    return record if {"accuracy", "images", "options"} <= record.keys() else None


def training(run: RunDirectory) -> Table | None:
    """The epochs of the training in a run, with the events of its scheme; None where nothing was trained."""
    path, record = run.trained_weights.with_name("epochs.csv"), training_record(run)
    if record is None or not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return epochs_table(str(run), lines, record.get("scheme"))


def epochs_table(run: str, lines: Sequence[Mapping[str, Any]], scheme: Mapping[str, Any] | None) -> Table:
    """A row for each epoch.

    Parameters
    ----------
    run : str
        Name of the training.
    lines : sequence of mapping
        The history; texts or numbers.
    scheme : mapping or None
        As a record has it: ``filters`` and ``events``.
    """
    rows = []
    filters, events = (scheme["filters"], scheme["events"]) if scheme else ({}, [])
    total, live = sum(filters.values()), 1.0
    by_epoch = {event["epoch"]: event for event in events}
    for line in lines:
        # An event happens before an epoch of this number, counted from 0: after as many epochs.
        number = int(float(line["epoch"]))
        event = by_epoch.get(number - 1)
        if event is not None:
            gone = sum(map(len, event["dropped"].values())) if event["event"] == "drop" else 0
            live = 1 - gone / total
        values = (_number(line.get(name)) for name in ("loss", "validation_accuracy", "seconds"))
        rows.append((run, number, *values, live, "" if event is None else event["event"]))
    return Table("training", TRAINING_COLUMNS, rows)


def filters(run: RunDirectory) -> Table | None:
    """The on/off map of filters; None where no filter was dropped in the training of the run."""
    path = run.trained_weights.with_name("filters.csv")
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    if len(header) < 3:
        return None
    return Table("filters", tuple(header), [(row[0], *map(int, row[1:])) for row in rows])


def events(run: RunDirectory) -> Table | None:
    """The events of the scheme of a run's training; None where there are none."""
    record = training_record(run) or {}
    found = record.get("scheme", {}).get("events", [])
    if not found:
        return None
    rows = []
    for event in found:
        layers = ", ".join(f"{path}: {len(places)}" for path, places in event["dropped"].items())
        count = sum(map(len, event["dropped"].values()))
        values = (event.get(name) for name in EVENT_COLUMNS[3:-1])
        rows.append((event["epoch"], event["event"], count, *values, layers))
    return Table("events", EVENT_COLUMNS, rows)


def result(run: RunDirectory) -> tuple[Any, ...] | None:
    """The training of a run as a row of :data:`RESULT_COLUMNS`; None where there is none."""
    record = training_record(run)
    if record is None:
        return None
    best, table = record.get("best", {}), training(run)
    times = [] if table is None else [value for value in table.column("seconds")[1:] if value is not None]
    return (
        str(run), record.get("scheme", {}).get("name", "standard"), record.get("steps"),
        record["accuracy"].get("validation"), record["accuracy"].get("test"), best.get("epoch"),
        best.get("validation"), best.get("test"), sum(times) / len(times) if times else None,
        record["images"]["validation"], record["images"]["test"],
    )  # fmt: skip


def _number(value: Any) -> float | None:
    return None if value in ("", None) else float(value)


#: The tables of the training in a run, in the order of the report.
COLLECTORS: tuple[Collector, ...] = (training, events, filters)
