"""Stage ``report``: what a run's files say, drawn and written on one sheet; ``compare`` puts several runs on one."""

import csv
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from decomp.errors import FileError, UsageError

from ...data.formats.atomic import commit, commit_directory
from ..console.reporter import Reporter
from ..reporting import collect as evidence
from ..reporting import figures
from ..reporting import html_page as page
from ..reporting.collect import Missing, Table
from ..run.directory import RunDirectory


@dataclass(frozen=True)
class ReportResult:
    """The files of one report.

    Attributes
    ----------
    html : str
        The sheet; its figures lie inside it.
    folder : str
        Holds each figure as PNG and its numbers as CSV.
    figures : list of str
        Names, in the order of the sheet.
    missing : list of (str, str)
        What is not on it and why; the command that would make it.
    """

    html: str
    folder: str
    figures: list = field(default_factory=list)
    missing: list = field(default_factory=list)

    def lines(self):
        """Lines for a person."""
        yield f"{self.html}: {len(self.figures)} figures; each as PNG and its numbers as CSV in {self.folder}"
        for why, command in self.missing:
            yield f"not on it: {why}; run: {command}"


def report(run, *, out=None, reporter=None):
    """Draw what there is of a run.

    Parameters
    ----------
    run : path or RunDirectory
    out : path, optional
        Folder for report.html and its figures; by default the run itself, with the figures in ``report/``.
    reporter : Reporter, optional

    Returns
    -------
    ReportResult

    Notes
    -----
    Reads files alone: nothing is measured here, and what is not there is said with the command that makes it.
    """
    run = RunDirectory.open(run)
    reporter = reporter or Reporter()
    html, folder = run.report_html, run.figures_dir
    if out is not None:
        html, folder = Path(out, html.name), Path(out, folder.name)
    with run.lock(), reporter.stage("report"):
        found = [collect(run) for collect in evidence.COLLECTORS]
        sections = _sections(found)
        layers = next((item.summary for item in found if isinstance(item, Table) and item.summary), None)
        words = page.run_words(run.read_config(), layers)
        return _write(html, folder, f"{run.path.resolve().name}: {words[0]}", words[1:], sections, found, layers)


def compare(runs, *, out="comparison", reporter=None):
    """Put several runs on one sheet.

    Parameters
    ----------
    runs : sequence of path or RunDirectory
        Two or more, each evaluated.
    out : path
        Folder for compare.html and its figures.

    Returns
    -------
    ReportResult

    Raises
    ------
    UsageError
        Fewer than two different runs.
    FileError
        None of them was evaluated.
    """
    runs = [RunDirectory.open(run) for run in runs]
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise UsageError("compare", "two or more different runs are needed", got=" ".join(map(str, runs)) or "none")
    reporter = reporter or Reporter()
    reporter.step(f"comparing {len(runs)} runs")
    found = [evidence.networks(run) for run in runs]
    tables = [item for item in found if isinstance(item, Table)]
    if not tables:
        raise FileError(runs[0].path, "none of these runs was evaluated", fix=f"run `{found[0].command}` first")
    rows = [row for table in tables for row in table.rows]
    notes = [f"{table.rows[0][0]}: {note}" for table in tables for note in table.notes]
    sections = _sections([Table("networks", evidence.NETWORKS, rows, notes)])
    missing = [replace(item, why=f"{run}: {item.why}") for run, item in zip(runs, found) if isinstance(item, Missing)]
    words = page.differences({str(run): run.read_config()["stages"] for run in runs})
    title = f"{len(runs)} runs: {', '.join(run.path.resolve().name for run in runs)}"
    return _write(Path(out, "compare.html"), Path(out, "figures"), title, words, sections, missing, None)


def _sections(found):
    """The tables to be drawn, in the order of the sheet; the networks' serve two figures."""
    sections = []
    for item in found:
        if isinstance(item, Table) and item.name == "networks":
            sections += [replace(item, name="accuracy"), replace(item, name="latency", notes=[])]
        elif isinstance(item, Table):
            sections.append(item)
    return sections


def _write(html, folder, title, words, sections, found, layers):
    drawn, networks = [], next((table for table in sections if table.name == "accuracy"), None)
    with commit_directory(folder) as part:
        for table in sections:
            with open(part / f"{table.name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([table.header, *table.rows])
            if figures.draw(table, part / f"{table.name}.png"):
                drawn.append((table, (part / f"{table.name}.png").read_bytes()))
    missing = [(item.why, item.command) for item in found if isinstance(item, Missing)]
    # Beside each other, so that the sheet still finds its numbers when both are moved.
    numbers = os.path.relpath(folder, html.parent).replace(os.sep, "/")
    with commit(html) as part:
        part.write_text(page.sheet(title, words, networks, drawn, missing, layers, numbers), encoding="utf-8")
    return ReportResult(str(html), str(folder), [table.name for table, _ in drawn], missing)
