"""Parts of the pages about trainings: results in a table, curves, events of a scheme, on/off map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.intervals import short_share
from .html_page import Section, figure, paragraph
from .html_tables import text_rows
from .tables import Table
from .training_tables import RESULT_COLUMNS

TITLE, MAP_TITLE, EVENTS_TITLE = "Training", "Filters that were dropped", "Events of the scheme"
NOTE = (
    "In brackets: 95 % intervals of shares of images. Best epoch: that with the highest accuracy on the held-out "
    "images; its weights were tested after the training, like those of the last epoch."
)
#: For each figure, the elements for a wide and for a narrow page, part by part.
Drawn = Mapping[str, Sequence[tuple[str, str]]]


def training_sections(
    results: Sequence[tuple[Any, ...]], tables: Mapping[str, Table], drawn: Drawn, numbers: str
) -> list[Section]:
    """The sections of one training, or of several beside each other.

    Parameters
    ----------
    results : sequence of tuple
        Rows of :data:`decomp.pipelines.reporting.training_tables.RESULT_COLUMNS`; empty for no training.
    tables : mapping of str to Table
        By name, as far as there are any: 'training', 'filters', 'events'.
    drawn : mapping
    numbers : str
        Folder of the CSV files, relative to the page.
    """
    if not results:
        return []
    figures = {name: figure(name, drawn.get(name, ()), f"{numbers}/{name}.csv") for name in ("training", "filters")}
    parts = [results_table(results), paragraph(NOTE, "note"), *figures["training"]]
    events = tables.get("events")
    return [
        Section(TITLE, parts),
        Section(EVENTS_TITLE, [] if events is None else [events_table(events)]),
        Section(MAP_TITLE, figures["filters"]),
    ]


def results_table(results: Sequence[tuple[Any, ...]]) -> str:
    """A line for each training: scheme, steps, accuracies of the last and of the best epoch, time."""
    header = ["run", "scheme", "test", "held out", "best epoch", "its test", "its held out", "steps", "s per epoch"]
    rows = []
    for result in results:
        row = dict(zip(RESULT_COLUMNS, result))
        rows.append([
            row["run"], row["scheme"], _share(row["test"], row["n_test"]), _number(row["validation"], ".1%"),
            _number(row["best_epoch"], ""), _share(row["best_test"], row["n_test"]),
            _number(row["best_validation"], ".1%"), _number(row["steps"], ","),
            _number(row["seconds_per_epoch"], ".3g"),
        ])  # fmt: skip
    return text_rows("Trainings", header, rows, reflow=True)


def events_table(table: Table) -> str:
    """A line for each drop and each return of filters."""
    header = ["after epoch", "event", "filters", "by layer", "mean overlap", "largest |cos|", "held-out accuracy"]
    rows = []
    for row in table.dicts():
        accuracy = "–"
        if row["accuracy_after"] is not None:
            accuracy = f"{100 * row['accuracy_before']:.1f} % → {100 * row['accuracy_after']:.1f} %"
        overlap = f"{row['overlap_before']:.3g} → {row['overlap_after']:.3g}"
        words = "dropped" if row["event"] == "drop" else "back"
        cosine = _number(row["max_cosine"], ".1e")
        rows.append([str(row["epoch"]), words, str(row["filters"]), row["layers"], overlap, cosine, accuracy])
    return text_rows(EVENTS_TITLE, header, rows, reflow=True)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("%", " %")


def _share(value: float | None, n_images: int) -> str:
    return "–" if value is None else short_share(value, n_images)
