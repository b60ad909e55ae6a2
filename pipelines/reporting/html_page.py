"""HTML page of a report: one file with embedded figures, style and script, that loads nothing else."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .html_tables import text_rows
from .tables import Table

TITLES = {
    "accuracy": "Accuracy against time and cost",
    "latency": "Speed-up in multiply-accumulates and in time",
    "runtimes": "Time in each runtime",
    "classes": "Accuracy of each class",
    "layers": "Layers, before and after",
    "errors": "Error of each layer after each step",
    "curves": "Error at every size, with the chosen size",
    "channels": "Kept channels",
    "sensitivity": "Sensitivity of each layer to pruning",
    "finetuning": "Fine-tuning",
    "outputs": "Closeness of each output",
    "training": "Training",
    "filters": "Filters that were dropped",
}
#: Begin of each page's text, by which a page of ours is known.
HEADER = '<header><p class="run">'
#: In place of the title and the caption of accuracy, for outputs that are not class scores.
CHANGE_TITLE = "Change of the outputs against time and cost"
CHANGE_CAPTION = (
    "Lower and further left is better. The vertical axis is the squared change of the outputs as a share of their "
    "variance, the mean of all outputs; horizontal lines are the quartiles of the measured times."
)
CAPTIONS = {
    "accuracy": "Higher and further left is better. Vertical lines are 95 % intervals of the shares of test images, "
    "horizontal ones the quartiles of the measured times. The multiply-accumulates are counted in the networks.",
    "latency": "Bars are medians, whiskers the quartiles of the network's own time. Where the measured speed-up is the "
    "smaller one, this machine runs many small convolutions less efficiently than a few large ones.",
    "runtimes": "Bars are medians, whiskers the quartiles of the rounds. Each runtime and memory layout has rounds of "
    "its own, in which all networks run in turn. The file has every time that was ever measured, with its conditions.",
    "classes": "A class with few test images has a wide interval: it appears with each value.",
    "layers": "The cost of a layer falls by its own factors, by fewer input channels, and by fewer output channels "
    "where the next layer reads fewer. Beside the bars: ratio of before to after.",
    "errors": "Relative to the responses of the original network; the inputs include the errors of the earlier layers. "
    "Refinement minimises an error weighted by the output metric, so the error shown may rise slightly. "
    "Errors below 0.001 % are drawn at 0.001 %.",
    "curves": "Each step alone, on the original network. Where a curve falls only near the full size, the layer has "
    "little redundancy; the plan reduces layers whose curves fall early. Errors below 0.001 % are drawn at 0.001 %.",
    "channels": "Only pruned layers are shown: their inputs, or in a pruned network their outputs. A "
    "pattern that repeats in blocks would indicate a selection by position "
    "instead of importance.",
    "sensitivity": "One layer is pruned at a time, and nothing is trained. Where a curve stays high, the layer has "
    "channels to spare; layers whose curve falls early can be left out with --skip.",
    "finetuning": "Epoch 0 is the network before fine-tuning; it can be the best.",
    "outputs": "Each output is compared by its own spread.",
    "training": "Grey: epochs in which filters were absent; dotted lines: they are dropped or come back. The loss is "
    "the mean of an epoch, the accuracy is measured after it; epoch 0 is the network with random weights.",
    "filters": "One line for each filter. Each drop is chosen anew, from one list over all layers.",
}
#: Number of sections above which a page has a list of them.
MOST_WITHOUT_CONTENTS = 5
SHARES = (("top1", "top-1"), ("agreement", "same top class"), ("output_difference", "change of the outputs"))
LAYERS_NOTE = (
    "MACs: multiply-accumulates for one image. Share: of the result's multiply-accumulates. Error: relative squared "
    "error of the layer's responses. Not applied: steps that cannot change the layer, and why."
)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes
    ----------
    title : str
    parts : list of str
        HTML elements.
    """

    title: str
    parts: list[str] = field(default_factory=list)


def rich(text: str) -> str:
    """A text as HTML: escaped, with what stands between backquotes as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of the page."""
    return f'<p class="{style}">{rich(text)}</p>' if style else f"<p>{rich(text)}</p>"


def figure(name: str, drawn: Sequence[tuple[str, str]], numbers: str, caption: str = "") -> list[str]:
    """The elements of a figure.

    Parameters
    ----------
    name : str
        Of its table.
    drawn : sequence of (str, str)
        The wide and the narrow picture of each part.
    numbers : str
        Path of the CSV file, relative to the page.
    caption : str
        By default that of :data:`CAPTIONS`.

    Returns
    -------
    list of str
        The caption is below the last part.
    """
    link = f'<a href="{html.escape(numbers)}">Numbers (CSV)</a>'
    below = f"<figcaption>{html.escape(caption or CAPTIONS[name])} {link}</figcaption>"
    pictures = [f'<div class="broad">{broad}</div><div class="slim">{slim}</div>' for broad, slim in drawn]
    if not pictures:
        return []
    return [f"<figure>{picture}</figure>" for picture in pictures[:-1]] + [f"<figure>{pictures[-1]}{below}</figure>"]


def alternative(table: Table) -> str:
    """Text alternative of a figure: its title, and its values where there are few."""
    rows, title = table.dicts(), TITLES[table.name]
    if table.name in ("accuracy", "latency"):
        words = [
            f"{row['network']} {row['latency_ms']:.3g} ms, {row['macs'] / 1e6:.3g} M multiply-accumulates"
            + "".join(f", {name} {100 * row[key]:.2f} %" for key, name in SHARES if row[key] is not None)
            for row in rows
        ]
    elif table.name == "runtimes":
        words = [
            f"{row['network']} in {row['runtime']}, {row['layout']} {row['latency_ms']:.3g} ms"
            for row in rows if row["shown"] and row["latency_ms"] is not None
        ]  # fmt: skip
    elif table.name == "finetuning":
        last = rows[-1]
        words = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in last.items() if value is not None]
    else:
        words = [f"{len({row[table.header[0]] for row in rows})} rows, the values are in the linked file"]
    return f"{title}: {'; '.join(words)}"


def options_table(config: Mapping[str, Any]) -> str:
    """The options of each stage of a run; those that were not given are left out."""
    tables = []
    for stage, record in config["stages"].items():
        asked = {key: value for key, value in record.get("asked", {}).items() if value is not None and value != []}
        if asked:
            rows = [(key.replace("_", " "), option_text(value)) for key, value in asked.items()]
            tables.append(text_rows(f"Options of {stage}", [stage, "value"], rows))
    return f'<div class="beside">{"".join(tables)}</div>' if tables else ""


def option_text(value: Any) -> str:
    """The value of an option in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(option_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def differences_table(stages_of: Mapping[str, Mapping[str, Any]]) -> str:
    """The options in which runs differ, a column for each run; a paragraph where there are none.

    Parameters
    ----------
    stages_of : mapping
        For each run, the stages in its run.json.
    """
    columns: dict[str, list[str]] = {}
    for stage in ("train", "freeze", "decompose", "prune", "finetune"):
        asked = [(stages.get(stage) or {}).get("asked") for stages in stages_of.values()]
        if None in asked and any(asked):
            columns[stage] = ["not done" if options is None else "done" for options in asked]
        there = [options for options in asked if options is not None]
        for key in dict.fromkeys(key for options in there for key in options):
            if len({repr(options.get(key)) for options in there}) > 1:
                texts = ["" if options is None else _given(options.get(key)) for options in asked]
                columns[f"{stage}: {key.replace('_', ' ')}"] = texts
    if not columns:
        return paragraph("All options are the same.")
    header = ["run", *columns]
    rows = [list(row) for row in zip(stages_of, *columns.values())]
    return text_rows("Options in which the runs differ", header, rows, reflow=True)


def _given(value: Any) -> str:
    return "not given" if value is None or value == [] else option_text(value)


def versions_line(config: Mapping[str, Any]) -> str:
    """The versions of the last stage in one line."""
    versions: Mapping[str, str] = next(reversed(config["versions"].values()), {})
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def commands_list(items: Sequence[tuple[str, str]]) -> str:
    """Reasons with the commands that go on from there."""
    lines = "".join(f"<li>{html.escape(why)}: <code>{html.escape(cmd)}</code></li>" for why, cmd in items)
    return f"<ul>{lines}</ul>"


def render_page(name: str, title: str, below: str, first: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page as HTML.

    Parameters
    ----------
    name : str
        Of the run or runs, before the title.
    title : str
        First line of the page: the verdict where there is one.
    below : str
        Line below the title; empty for none.
    first : list of str
        HTML elements before the first section.
    sections : list of Section
        Those without parts are left out.
    """
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    parts = [f"{HEADER}{html.escape(name)}</p><h1>{html.escape(title)}</h1>"]
    parts += [paragraph(below, "measured")] if below else []
    parts += [*first, "</header>"]
    shown = [section for section in sections if section.parts]
    if len(shown) > MOST_WITHOUT_CONTENTS:
        links = [f'<a href="#s{i}">{html.escape(section.title)}</a>' for i, section in enumerate(shown)]
        parts.append(f'<nav aria-label="Contents">{" ".join(links)}</nav>')
    for i, section in enumerate(shown):
        parts += [f'<section id="s{i}">', f"<h2>{html.escape(section.title)}</h2>", *section.parts, "</section>"]
    head = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{html.escape(f'{name}: {below or title}')}</title>",
        f"<style>\n{style}</style></head>",
    ]
    return "\n".join([*head, "<body>", *parts, f"<script>\n{script}</script>", "</body></html>", ""])
