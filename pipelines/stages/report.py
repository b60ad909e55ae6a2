"""Stage ``report``: one HTML page with the figures and tables of a run; ``compare`` does the same for several runs."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from decomp.errors import FileError, UsageError

from ...data.formats.atomic import commit, commit_directory
from ..console.program import program
from ..console.reporter import Reporter
from ..console.words import counted
from ..reporting import collect, figures, training_tables
from ..reporting.comparison import comparison_lines
from ..reporting.html_page import HEADER, alternative
from ..reporting.run_page import compare_page, run_page
from ..reporting.tables import Missing, Table
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
    words : list of str
        Lines that say the main of it in a terminal.
    """

    html: str
    folder: str
    figures: list[str] = field(default_factory=list, repr=False)
    missing: list[tuple[str, str]] = field(default_factory=list, repr=False)
    words: list[str] = field(default_factory=list, repr=False)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines: what was written, then the next step."""
        yield from self.findings()
        yield from self.next_steps()

    def findings(self) -> Iterator[str]:
        """The lines without the next step."""
        yield from self.words
        n_figures = counted(len(self.figures), "figure")
        yield f"{self.html}: {n_figures}; each as PNG and its numbers as CSV in {self.folder}"
        for why, command in self.missing:
            yield f"missing: {why}; run: {command}"

    def next_steps(self) -> Iterator[str]:
        """The line with the next step."""
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

    Raises
    ------
    UsageError
        Files of the same names are in `out` that no report has written.
    FileError
        A file of the run is damaged.

    Notes
    -----
    Only reads files: nothing is measured here, and missing data is reported with the command that makes it.
    """
    run = RunDirectory.open(run)
    reporter = reporter or Reporter()
    html, folder = run.report_html, run.figures_dir
    if out is not None:
        html, folder = Path(out, html.name), Path(out, folder.name)
        _require_ours(html, folder)
    with run.lock(), reporter.stage("report"):
        _require_original(run)
        found = _found(run)
        tables = {table.name: table for table in _tables(found)}
        missing = [item for item in found if isinstance(item, Missing)]
        drawn = _draw(folder, tables)
        page = run_page(
            run.path.resolve().name, str(run), run.read_config(), collect.read_report(run), tables, missing, drawn,
            _relative(folder, html), [] if (trained := training_tables.result(run)) is None else [trained],
        )  # fmt: skip
        with commit(html) as part:
            part.write_text(page, encoding="utf-8")
        # Several tables may lack the same thing.
        lacking = list(dict.fromkeys((item.why, item.command) for item in missing))
        return ReportResult(str(html), str(folder), list(drawn), lacking)


def compare(
    runs: Sequence[str | os.PathLike[str] | RunDirectory],
    *,
    out: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
) -> ReportResult:
    """Put several runs on one page.

    Parameters
    ----------
    runs : sequence of path or RunDirectory
        Two or more, each evaluated, or trained with ``train --run``.
    out : path, optional
        Folder for compare.html and its figures; ``comparison`` beside the first run where it is not given.
    reporter : Reporter, optional

    Returns
    -------
    ReportResult

    Raises
    ------
    UsageError
        Fewer than two different runs.
    FileError
        None of them was evaluated, and fewer than two were trained.
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
    trained = {run: table for run in opened if (table := training_tables.training(run)) is not None}
    trained = trained if len(trained) > 1 else {}
    if not tables and not trained:
        first, item = next(iter(lacking.items()))
        raise FileError(first.path, "none of these runs was evaluated", fix=f"run `{item.command}` first")
    place = opened[0].path.parent / "comparison" if out is None else Path(out)
    html, folder = place / "compare.html", place / "figures"
    before = _compared_before(html, folder)
    groups: dict[str, tuple[Table, dict[str, Table]]] = {}
    for tested, table in _groups(tables).items():
        suffix = f"-{len(groups) + 1}" if groups else ""
        pair = {f"{name}{suffix}": replace(table, name=name) for name in ("accuracy", "latency")}
        groups[tested] = (table, pair)
    if len(groups) > 1:
        reporter.warn(f"not the same test images, so each has figures of its own: {'; '.join(groups)}")
    shown = {key: table for _, pair in groups.values() for key, table in pair.items()}
    if trained:
        rows = [row for table in trained.values() for row in table.rows]
        shown["training"] = replace(next(iter(trained.values())), rows=rows)
    drawn = _draw(folder, shown)
    missing = [(f"{run}: {item.why}", item.command) for run, item in lacking.items() if tables or run not in trained]
    page = compare_page(
        [run.path.resolve().name for run in opened],
        groups, drawn, {str(run): run.read_config()["stages"] for run in opened}, missing, _relative(folder, html),
        [row for run in trained if (row := training_tables.result(run)) is not None],
    )  # fmt: skip
    if before not in (None, _title_of(page)):
        reporter.warn(f"{html}: takes the place of an earlier {str(before).replace(':', ' of', 1)}")
    with commit(html) as part:
        part.write_text(page, encoding="utf-8")
    words = [line for tested, (table, _) in groups.items() for line in _in_terminal(tested, table, len(groups))]
    return ReportResult(str(html), str(folder), list(drawn), missing, words)


def _in_terminal(tested: str, table: Table, n_groups: int) -> list[str]:
    """The networks that were tested on the same images; the images are named where there are several groups."""
    return [*([f"{tested}:"] if n_groups > 1 else []), *comparison_lines(table)]


def _found(run: RunDirectory) -> list[Table | Missing | None]:
    """All tables of a run; of one that was only trained, those of the training."""
    found = [collector(run) for collector in training_tables.COLLECTORS]
    if set(run.read_config()["stages"]) == {"train"}:
        why = "the trained network is not compressed"
        return [*found, Missing("networks", why, f"{program()} freeze --run {run}")]
    return [*(collector(run) for collector in collect.COLLECTORS), *found]


def _require_original(run: RunDirectory) -> None:
    """Refuse a compressed run without its original network, with which all that was made from it is compared.

    Raises
    ------
    FileError
    """
    structure = run.original_dir / "structure.json"
    made = any("macs_after" in (run.config(stage) or {}) for stage in ("decompose", "prune"))
    if made and not structure.is_file():
        raise FileError(structure, "is missing", fix="put a copy of it back, or run freeze into another --run")


def _require_ours(html: Path, folder: Path) -> None:
    """Refuse to replace a page, or a folder beside no page, that this program has not written.

    Raises
    ------
    UsageError
    """
    ours = html.is_file() and HEADER in html.read_text(encoding="utf-8", errors="replace")
    if not ours and (html.exists() or folder.exists()):
        there = html if html.exists() else folder
        raise UsageError(there, "is there and was not written by report", fix="give another folder with --out")


def _compared_before(html: Path, folder: Path) -> str | None:
    """Title of an earlier page that will be replaced; None where there is none.

    Raises
    ------
    UsageError
        Files of the same names are there that this stage has not written.
    """
    before = _title_of(html.read_text(encoding="utf-8", errors="replace")) if html.is_file() else None
    if before is None and (html.exists() or folder.exists()):
        there = html if html.exists() else folder
        raise UsageError(there, "is there and was not written by compare", fix="give another folder with --out")
    return before


def _title_of(page: str) -> str | None:
    found = re.search("<title>(comparison: .*)</title>", page)
    return None if found is None else found[1]


def _tables(found: Sequence[Table | Missing | None]) -> list[Table]:
    """The tables to be drawn; the table of networks is drawn twice."""
    tables: list[Table] = []
    for item in found:
        if isinstance(item, Table) and item.name == "networks":
            tables += [replace(item, name="accuracy"), replace(item, name="latency", notes=[])]
        elif isinstance(item, Table):
            tables.append(item)
    return tables


def _groups(tables: Sequence[Table]) -> dict[str, Table]:
    """The networks measured on the same test images in one table each, by the description of the images."""
    digests: dict[str, set[str]] = {}
    for table in tables:
        digests.setdefault(table.tested, set()).update([table.digest] if table.digest else [])
    groups: dict[str, Table] = {}
    said: dict[str, dict[str, list[str]]] = {}
    for table in tables:
        if table.digest and len(digests[table.tested]) > 1:
            # Of one name and number, and all the same other images.
            table = replace(table, tested=f"{table.tested} (digest {table.digest[:8]})")
        before = groups.get(table.tested)
        groups[table.tested] = replace(table, rows=[*(before.rows if before else []), *table.rows])
        for note in table.notes:
            said.setdefault(table.tested, {}).setdefault(note, []).append(table.rows[0][0])
    for tested, table in groups.items():
        n_runs = len({row[0] for row in table.rows})
        notes = [note if len(by) == n_runs else f"{note} ({', '.join(by)})" for note, by in said[tested].items()]
        groups[tested] = replace(table, notes=notes)
    return groups


def _draw(folder: Path, tables: Mapping[str, Table]) -> dict[str, list[tuple[str, str]]]:
    """Write each table as CSV and PNG into a new folder; the elements for the page, of those that can be drawn."""
    drawn = {}
    with commit_directory(folder) as part:
        for key, table in tables.items():
            with open(part / f"{key}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([table.header, *table.rows])
            if table.name in figures.DRAWINGS and figures.draw(table, part / f"{key}.png"):
                drawn[key] = figures.draw_for_page(table, key, alternative(table))
    return drawn


def _relative(folder: Path, html: Path) -> str:
    """The folder as the page links to it: relative, so that it is still found when both are moved."""
    return os.path.relpath(folder, html.parent).replace(os.sep, "/")
