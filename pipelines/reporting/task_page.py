"""Report of a run of tasks: tables, figures and the HTML page."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.formats.atomic import commit, commit_directory
from ..console.words import counted
from ..measure.intervals import short_share
from . import task_figures
from .html_page import Section, figure, paragraph, render_page
from .html_tables import text_rows

TITLES = {
    "matrix": "Accuracy of every task after each task",
    "owners": "Owners of the weights",
    "ladders": "Accuracy while weights are released",
}
CAPTIONS = {
    "matrix": "Test accuracy in %. A row that does not change is a task that is not forgotten.",
    "owners": "A weight belongs to the task that trained it; later tasks may pick it and do not change it. Free "
    "weights are 0 and wait for the next task.",
    "ladders": "Each mark is a rung of the ladder: that share of the task's own weights is released and the others "
    "have recovered.",
}


def write_task_report(html: Path, folder: Path, listed: Mapping[str, Any], numbers: str) -> list[str]:
    """Write the page and its figures.

    Parameters
    ----------
    html, folder : Path
        Of the page, and of the figures with their numbers.
    listed : mapping
        The list of tasks as plain data: ``tasks``, ``rows``, ``owners``, ``totals``, ``ladders``, ``run``.
    numbers : str
        The folder as the page links to it.

    Returns
    -------
    list of str
        Names of the figures.
    """
    names = [task["name"] for task in listed["tasks"]]
    figures: dict[str, tuple[task_figures.Draw, tuple[Any, ...], list[Sequence[Any]]]] = {
        "matrix": (task_figures.accuracy_matrix, (names, listed["rows"]), _matrix(names, listed["rows"])),
        "owners": (task_figures.owner_shares, (listed["owners"], names), _owners(names, listed["owners"])),
        "ladders": (task_figures.ladder_curves, (listed["ladders"],), _ladders(listed["ladders"])),
    }
    sections = [Section("Tasks", [_tasks(listed), *(paragraph(text, "note") for text in _notes(listed))])]
    with commit_directory(folder) as part:
        for key, (draw, arguments, rows) in figures.items():
            with open(part / f"{key}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
            task_figures.save(draw, arguments, part / f"{key}.png")
            drawn = task_figures.for_page(draw, arguments, key, f"{TITLES[key]}: the values are in the linked file")
            elements = figure(key, drawn, f"{numbers}/{key}.csv", CAPTIONS[key])
            table = [_matrix_table(names, listed["rows"])] if key == "matrix" else []
            sections.append(Section(TITLES[key], [*elements, *table]))
    page = render_page(Path(str(listed["run"])).name, _title(listed), "", [], sections)
    with commit(html) as file_part:
        file_part.write_text(page, encoding="utf-8")
    return list(figures)


def _title(listed: Mapping[str, Any]) -> str:
    totals, met = listed["totals"], sum(task["status"] == "met" for task in listed["tasks"])
    n = len(listed["tasks"])
    return (
        f"{counted(n, 'task')} in one network of {totals['expansion']:.2f} times the first one's weights; "
        f"{met} reached their goals"
    )


def _notes(listed: Mapping[str, Any]) -> list[str]:
    totals = listed["totals"]
    return [
        "Own: weights of the task, 1 is all of the first width. Picked: share of earlier tasks' weights that it uses. "
        "Independent: a network of its own, trained for the same steps.",
        f"{100 * totals['free']:.1f} % of {totals['parameters']:,.0f} shared weights are free. All task files take "
        f"{totals['bytes'] / 2**10:,.1f} KiB; as many independent networks would take "
        f"{totals['bytes_independent'] / 2**10:,.1f} KiB.",
    ]


def _tasks(listed: Mapping[str, Any]) -> str:
    header = ["task", "classes", "goal", "status", "validation", "at commit", "now", "independent", "own", "picked",
              "released", "width"]  # fmt: skip
    rows = []
    for task in listed["tasks"]:
        n_test = task["n_test"] or 0
        alone = (task["independent"] or {}).get("test")
        rows.append([
            task["name"], str(task["classes"]), f"{100 * task['goal']:.1f} %", task["status"],
            short_share(task["validation"], task["n_validation"]),
            *("–" if one is None else short_share(one, n_test) for one in (task["at_commit"], task["now"], alone)),
            f"{task['task_ratio']:.3f}", "–" if task["shared_ratio"] is None else f"{task['shared_ratio']:.2f}",
            f"{100 * task['released']:.0f} %", f"{task['width']:g}",
        ])  # fmt: skip
    return text_rows("Tasks", header, rows, reflow=True)


def _matrix(names: Sequence[str], rows: Sequence[Mapping[str, float | None]]) -> list[Sequence[Any]]:
    table: list[Sequence[Any]] = [("accuracy_of", *(f"after_{name}" for name in names[: len(rows)]))]
    return [*table, *((name, *(row.get(name) for row in rows)) for name in names)]


def _matrix_table(names: Sequence[str], rows: Sequence[Mapping[str, float | None]]) -> str:
    header, *body = _matrix(names, rows)
    texts = [[str(row[0]), *("" if value is None else f"{100 * value:.1f} %" for value in row[1:])] for row in body]
    return text_rows(TITLES["matrix"], [str(cell).replace("_", " ", 1) for cell in header], texts)


def _owners(names: Sequence[str], owners: Mapping[str, Mapping[int, float]]) -> list[Sequence[Any]]:
    rows = [(layer, *(share.get(n, 0.0) for n in range(len(names) + 1))) for layer, share in owners.items()]
    return [("layer", "free", *names), *rows]


def _ladders(ladders: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Sequence[Any]]:
    header = ("target", "released", "validation", "training")
    return [
        ("task", *header),
        *((name, *(rung[k] for k in header)) for name, rungs in ladders.items() for rung in rungs),
    ]
