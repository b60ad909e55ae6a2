"""Stage ``report``: one HTML page with the figures and tables of a run; ``compare`` does the same for several runs."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from decomp.errors import FileError, UsageError

from ...data.formats.atomic import commit, commit_directory
from ..console.reporter import Reporter
from ..reporting import collect, figures, html_page
from ..reporting.collect import Missing, Table
from ..reporting.summary import Summary
from ..run.directory import RunDirectory


@dataclass(frozen=True)
class ReportResult:
    """Files of one report.

    Attributes
    ----------
    html : str
        The page; its figures are embedded in it.
    folder : str
        Folder with each figure as PNG and its numbers as CSV.
    figures : list of str
        Names, in the order of the page.
    missing : list of (str, str)
        Reason for each figure that is missing, and the command that makes its data.
    """

    html: str
    folder: str
    figures: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield f"{self.html}: {len(self.figures)} figures; each as PNG and its numbers as CSV in {self.folder}"
        for why, command in self.missing:
            yield f"missing: {why}; run: {command}"
        yield f"next: open {os.path.abspath(self.html)} in a browser"


def report(
    run: str | os.PathLike[str] | RunDirectory,
    *,
    out: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
) -> ReportResult:
    """Draw the results of a run.

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
    Only reads files: nothing is measured here, and missing data is reported with the command that makes it.
    """
    run = RunDirectory.open(run)
    reporter = reporter or Reporter()
    html, folder = run.report_html, run.figures_dir
    if out is not None:
        html, folder = Path(out, html.name), Path(out, folder.name)
    with run.lock(), reporter.stage("report"):
        found = [collector(run) for collector in collect.COLLECTORS]
        sections = _sections(found)
        layers = next((item.summary for item in found if isinstance(item, Table) and item.summary), None)
        words = html_page.run_lines(run.read_config(), layers)
        return _write(html, folder, f"{run.path.resolve().name}: {words[0]}", words[1:], sections, found, layers)


def compare(
    runs: Sequence[str | os.PathLike[str] | RunDirectory],
    *,
    out: str | os.PathLike[str] = "comparison",
    reporter: Reporter | None = None,
) -> ReportResult:
    """Put several runs on one page.

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
    opened = [RunDirectory.open(run) for run in runs]
    if len({run.path.resolve() for run in opened}) < max(2, len(opened)):
        got = " ".join(map(str, opened)) or "none"
        raise UsageError("compare", "two or more different runs are needed", got=got)
    reporter = reporter or Reporter()
    reporter.step(f"comparing {len(opened)} runs")
    found = {run: collect.networks(run) for run in opened}
    tables = [item for item in found.values() if isinstance(item, Table)]
    lacking = {run: item for run, item in found.items() if isinstance(item, Missing)}
    if not tables:
        first, item = next(iter(lacking.items()))
        raise FileError(first.path, "none of these runs was evaluated", fix=f"run `{item.command}` first")
    rows = [row for table in tables for row in table.rows]
    notes = [f"{table.rows[0][0]}: {note}" for table in tables for note in table.notes]
    sections = _sections([Table("networks", collect.NETWORK_COLUMNS, rows, notes)])
    missing = [replace(item, why=f"{run}: {item.why}") for run, item in lacking.items()]
    words = html_page.differences({str(run): run.read_config()["stages"] for run in opened})
    title = f"{len(opened)} runs: {', '.join(run.path.resolve().name for run in opened)}"
    return _write(Path(out, "compare.html"), Path(out, "figures"), title, words, sections, missing, None)


def _sections(found: Sequence[Table | Missing]) -> list[Table]:
    """The tables to be drawn, in the order of the page; the table of networks is drawn twice."""
    sections: list[Table] = []
    for item in found:
        if isinstance(item, Table) and item.name == "networks":
            sections += [replace(item, name="accuracy"), replace(item, name="latency", notes=[])]
        elif isinstance(item, Table):
            sections.append(item)
    return sections


def _write(
    html: Path,
    folder: Path,
    title: str,
    words: list[str],
    sections: Sequence[Table],
    found: Sequence[Table | Missing],
    layers: Summary | None,
) -> ReportResult:
    drawn, networks = [], next((table for table in sections if table.name == "accuracy"), None)
    with commit_directory(folder) as part:
        for table in sections:
            with open(part / f"{table.name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([table.header, *table.rows])
            if figures.draw(table, part / f"{table.name}.png"):
                drawn.append((table, (part / f"{table.name}.png").read_bytes()))
    missing = [(item.why, item.command) for item in found if isinstance(item, Missing)]
    # Relative, so that the page still finds its numbers when both are moved.
    numbers = os.path.relpath(folder, html.parent).replace(os.sep, "/")
    page = html_page.render_page(title, words, networks, drawn, missing, layers, numbers)
    with commit(html) as part:
        part.write_text(page, encoding="utf-8")
    return ReportResult(str(html), str(folder), [table.name for table, _ in drawn], missing)
