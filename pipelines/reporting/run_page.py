"""Content of the two pages: the report of one run, and the comparison of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console.program import program
from ..console.time_table import time_rows
from ..console.words import counted
from ..measure import sanity
from ..measure.intervals import share_words
from ..measure.latency import Measurement, comparable, fastest_words, latency_table
from . import html_tables, verdict
from .html_page import (
    CHANGE_CAPTION,
    CHANGE_TITLE,
    LAYERS_NOTE,
    TITLES,
    Section,
    commands_list,
    differences_table,
    figure,
    options_table,
    paragraph,
    render_page,
    versions_line,
)  # fmt: skip
from .network_figures import MOST_CLASSES, measure_of
from .tables import Missing, Table
from .training_page import training_sections

INTERVALS = (
    "In brackets: 95 % intervals of shares of images, quartiles of times. MACs: multiply-accumulates for one image."
)
#: Stages in the order in which missing data is made.
PATH = ("decompose", "prune", "finetune", "evaluate")
#: Begin of a line of freeze that casts doubt on all that follows.
WARNING = "warning: "
#: For each figure, the elements for a wide and for a narrow page, part by part.
Drawn = Mapping[str, Sequence[tuple[str, str]]]
#: Figures that only some readers need, after the tables.
DETAILS = ("errors", "curves", "channels", "sensitivity")


def run_page(
    name: str, run: str, config: Mapping[str, Any], report: Mapping[str, Any] | None,
    tables: Mapping[str, Table], missing: Sequence[Missing], drawn: Drawn, numbers: str,
    trained: Sequence[tuple[Any, ...]] = (),
) -> str:  # fmt: skip
    """The report of one run as HTML.

    Parameters
    ----------
    name, run : str
        Name and path of the run.
    config : mapping
        Content of run.json.
    report : mapping or None
        Content of report.json.
    tables : mapping of str to Table
        By name, as far as there are any.
    missing : sequence of Missing
    drawn : mapping
    numbers : str
        Folder of the CSV files, relative to the page.
    trained : sequence of tuple
        The training in the run; see :func:`decomp.pipelines.reporting.training_page.training_sections`.
    """
    layers, networks = tables.get("layers"), tables.get("accuracy")
    summary = layers.summary if layers else None
    words = verdict.verdict(report, summary)
    doubts = [sentence(line.removeprefix(WARNING)) for line in _sanity(config) if line.startswith(WARNING)]
    first = [
        paragraph(text, "warning")
        for text in [*doubts, *verdict.warnings(report, run, program(), _another(config, run))]
    ]
    figures = {
        key: figure(key, parts, f"{numbers}/{key}.csv", _caption(tables.get(key))) for key, parts in drawn.items()
    }
    sections = [
        Section("Networks", [html_tables.networks_table(networks), *_notes(networks)] if networks else []),
        *(Section(_title(key, networks), figures.get(key, [])) for key in ("accuracy", "latency")),
        Section(TITLES["runtimes"], [*figures.get("runtimes", []), *_runtimes(report)]),
        Section(TITLES["classes"], [*_class_words(tables.get("classes")), *figures.get("classes", [])]),
        Section(TITLES["layers"], _layers(layers, figures, "outputs" in tables)),
        Section(TITLES["finetuning"], figures.get("finetuning", [])),
        Section(TITLES["outputs"], _outputs(tables.get("outputs"))),
        *training_sections(trained, tables, drawn, numbers),
        *(Section(TITLES[key], figures.get(key, [])) for key in DETAILS),
        Section("Calibration images", _frozen(config)),
        Section("Time", _times(config)),
        Section("Options", [options_table(config)] if config["stages"] else []),
        Section("Conditions", _conditions(config, report)),
        Section("Next steps", _next_steps(config, missing, run)),
    ]
    measured = verdict.title(config, report)
    return render_page(name, words or measured, measured if words else "", first, sections)


def _runtimes(report: Mapping[str, Any] | None) -> list[str]:
    """Times in several runtimes or memory layouts; nothing where one alone was measured."""
    measured = [Measurement.of(entry) for entry in (report or {}).get("latencies", [])]
    shown = comparable(measured, measured[-1]) if measured else []
    if len(shown) < 2:
        return []
    header, *rows = latency_table(shown)
    notes = [note for one in shown for note in one.notes()]
    words = [paragraph(sentence(text), "note") for text in [fastest_words(shown), *notes] if text]
    return [html_tables.text_rows("Runtimes", header, rows), *words]


def _title(name: str, networks: Table | None) -> str:
    """The title of a figure of networks."""
    return CHANGE_TITLE if name == "accuracy" and _is_change(networks) else TITLES[name]


def _caption(table: Table | None) -> str:
    """The caption of a figure where it is not the usual one; else empty."""
    return CHANGE_CAPTION if table is not None and table.name == "accuracy" and _is_change(table) else ""


def _is_change(networks: Table | None) -> bool:
    """Whether the networks are judged by the change of their outputs, which should be small."""
    return networks is not None and measure_of(networks.dicts()) == "output_difference"


def _notes(table: Table) -> list[str]:
    notes = [note for note in table.notes if not note.startswith(verdict.UNRELIABLE)]  # which stand below the verdict
    return [paragraph(INTERVALS, "note"), *(paragraph(sentence(note), "note") for note in notes)]


def sentence(text: str) -> str:
    """A note with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ":")) else ".")


def _class_words(table: Table | None) -> list[str]:
    """The classes that changed most, as the text alternative of the figure."""
    if table is None:
        return []
    correct = [name for name in table.header if name.startswith("correct_")]
    if len(correct) < 2:
        return []
    first, last = correct[0], correct[-1]
    rows = [row for row in table.dicts() if row["images"]]
    rows.sort(key=lambda row: (row[last] - row[first]) / row["images"])
    lost = [row for row in rows[:3] if row[last] < row[first]]
    if not lost:
        return [paragraph(f"No class lost accuracy from original to {last.removeprefix('correct_')}.")]
    texts = [
        f"{row['class']}: {100 * row[first] / row['images']:.1f} → "
        f"{share_words(row[last] / row['images'], row['images'])} of {row['images']:,} images"
        for row in lost
    ]
    shown = f" Shown are the {MOST_CLASSES} of {len(rows)} classes that lost most." if len(rows) > MOST_CLASSES else ""
    return [paragraph(f"Largest losses from original to {last.removeprefix('correct_')}: {'; '.join(texts)}.{shown}")]


def _layers(table: Table | None, figures: Mapping[str, Sequence[str]], with_outputs: bool) -> list[str]:
    if table is None:
        return []
    # Where there is a table of outputs, the lines of single outputs are not repeated.
    notes = table.notes[:2] if with_outputs else table.notes
    note = paragraph(LAYERS_NOTE, "note")
    return [
        *(paragraph(sentence(text)) for text in notes),
        *figures["layers"],
        html_tables.layers_table(table),
        note,
    ]


def _outputs(table: Table | None) -> list[str]:
    if table is None:
        return []
    note = "Each output is compared by its own spread: 100 % would be as far off as its mean."
    return [html_tables.outputs_table(table), paragraph(" ".join([*table.notes, note]), "note")]


def _frozen(config: Mapping[str, Any]) -> list[str]:
    """The calibration images, and what freeze found about them and the network."""
    record = config["stages"].get("freeze", {})
    facts, asked = record.get("facts", {}), record.get("asked", {})
    lines = []
    if "n_images" in facts:
        positions = f"{facts['n_points']} positions for each image and grid"
        mixed = f", and {counted(facts['n_mixtures'], 'mixture')} of two of them" if facts.get("n_mixtures") else ""
        lines.append(f"{facts['n_images']:,} images of {asked.get('data')}{mixed}, {positions}.")
    if "preprocessing" in facts:
        lines.append(f"preprocessing: {facts['preprocessing']}")
    lines += [line for line in _sanity(config) if not line.startswith(WARNING)]
    return [paragraph(sentence(line)) for line in lines]


def _times(config: Mapping[str, Any]) -> list[str]:
    """Time that decompose spent, by phase and part."""
    times = config["stages"].get("decompose", {}).get("times")
    if not times:
        return []
    header, *rows = time_rows(times)
    rows = [(_indented(name), *cells) for name, *cells in rows]
    note = (
        "Seconds of decompose on the clock and of all processors; of its last call, where it was resumed. The indented "
        "parts are contained in the phase above them."
    )
    return [html_tables.text_rows("Time", header, rows), paragraph(note, "note")]


def _indented(name: str) -> str:
    """The same with no-break spaces at the begin, which HTML shows: ordinary ones there are dropped."""
    return 2 * (len(name) - len(name.lstrip())) * "\u00a0" + name.lstrip()


def _sanity(config: Mapping[str, Any]) -> list[str]:
    """The check of the original on the calibration images, in the words of freeze."""
    facts = config["stages"].get("freeze", {}).get("facts", {})
    return sanity.lines(facts["sanity"]) if "sanity" in facts else []


def _conditions(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> list[str]:
    rows = []
    if report:
        c = report["conditions"]
        if c["n_images"]:
            rows.append(("images", f"{c['n_images']:,} {c.get('images', 'test images')} of {c['data']}"))
        threads = f", {counted(c['threads'], 'thread')}" if c["device"] == "CPU" else ""
        how = f"batch of {c['batch_size']}, {c['layout']}, {c['rounds']} interleaved rounds"
        rows += [("device", c["device"] + threads), ("time", f"{c.get('runtime', 'eager')}, float32, {how}")]
    if versions := versions_line(config):
        rows.append(("versions", versions))
    return [html_tables.text_rows("Conditions", ["condition", "value"], rows)] if rows else []


def _next_steps(config: Mapping[str, Any], missing: Sequence[Missing], run: str) -> list[str]:
    by_stage: dict[str, tuple[str, str]] = {}
    for item in missing:
        by_stage.setdefault(item.command.removeprefix(program()).split()[0], (item.why, item.command))
    records = {stage: config["stages"].get(stage) or {} for stage in ("decompose", "prune")}
    made = next((stage for stage, record in records.items() if "macs_after" in record), None)
    # Of a finished stage something can only be missing because of its options.
    items = [by_stage[stage] for stage in PATH if stage in by_stage and not (made and stage in records)]
    if made:
        items.append(("use the network elsewhere", f"{program()} export --run {run}"))
        items.append(("try another speed-up on the same calibration images", _again(config, run, made)))
        items.append(("compare runs", f"{program()} compare {run} NEW"))
    return [commands_list(items)] if items else []


def _again(config: Mapping[str, Any], run: str, made: str) -> str:
    speedup = config["stages"][made].get("asked", {}).get("speedup") or 2.0
    other = speedup / 2 if speedup >= 3 else speedup * 1.5
    return f"{_another(config, run)} --speedup {other:g}x"


def _another(config: Mapping[str, Any], run: str) -> str:
    """Begin of the command that makes another network of the same kind in another run."""
    pruned = config["stages"].get("prune")
    if pruned is None:
        return f"{program()} decompose --run NEW --from {run}"
    asked = config["stages"].get("freeze", {}).get("asked", {})
    inside = Path(run, asked.get("weights") or "").is_file()  # trained in the run itself
    file = Path(run, asked["weights"]) if inside else asked.get("weights")
    weights = f" --weights {file}" if file else ""
    criterion = pruned.get("asked", {}).get("criterion", "l1")
    command = f"{program()} prune --model {asked.get('model')}{weights} --data {asked.get('data')} --run NEW"
    return f"{command} --criterion {criterion}"


def compare_page(
    names: Sequence[str], groups: Mapping[str, tuple[Table, Mapping[str, Table]]], drawn: Drawn,
    stages_of: Mapping[str, Mapping[str, Any]], missing: Sequence[tuple[str, str]], numbers: str,
    trained: Sequence[tuple[Any, ...]] = (),
) -> str:  # fmt: skip
    """The comparison of several runs as HTML.

    Parameters
    ----------
    names : sequence of str
        Of the runs.
    groups : mapping of str to (Table, mapping)
        By the description of the test images, the networks measured on them, and the tables of their figures.
    drawn : mapping
    stages_of : mapping
        For each run, the stages in its run.json.
    missing : sequence of (str, str)
    numbers : str
        Folder of the CSV files, relative to the page.
    trained : sequence of tuple
        The trainings in the runs.
    """
    first = []
    if len(groups) > 1:
        first.append(paragraph(
            "These runs were measured on different test images: accuracies of different parts of this page cannot be "
            "compared.", "warning",
        ))  # fmt: skip
    sections = []
    for description, (table, pair) in groups.items():
        suffix = f", {description}" if len(groups) > 1 else ""
        words = [paragraph(text) for text in [verdict.best_of(table)] if text]
        sections.append(Section("Networks" + suffix, [*words, html_tables.networks_table(table), *_group_notes(table)]))
        for key, part in pair.items():
            elements = figure(part.name, drawn.get(key, ()), f"{numbers}/{key}.csv", _caption(part))
            sections.append(Section(_title(part.name, part) + suffix, elements))
    sections += training_sections(trained, {}, drawn, numbers)
    sections.append(Section("Options in which the runs differ", [differences_table(stages_of)]))
    sections.append(Section("Missing", [commands_list(missing)] if missing else []))
    return render_page("comparison", f"{len(names)} runs: {', '.join(names)}", "", first, sections)


def _group_notes(table: Table) -> list[str]:
    marks = f"{INTERVALS} The number of a run is its mark in a narrow figure."
    return [paragraph(marks, "note"), *(paragraph(sentence(note), "note") for note in table.notes)]
