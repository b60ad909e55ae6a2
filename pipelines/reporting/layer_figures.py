"""Figures with a row or a panel for each layer: costs, errors, error curves, kept channels.

A figure of many layers grows in height, so that its labels never overlap. It can be drawn in parts that share a scale,
so that none is cut at the end of a sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from decomp.allocation.plan import STEP_TABLE

from .figure_style import (
    ACCENT,
    DARK,
    EDGE,
    FAINT,
    LIGHT,
    MIDDLE,
    ROW,
    RULE,
    SMALL,
    WIDE,
    labels,
    new_figure,
    row_axes,
    tip,
)  # fmt: skip
from .tables import Table

STEP_MARKS = {
    "refit": ("o", "none", DARK), "prune": ("v", LIGHT, DARK), "spatial": ("D", MIDDLE, DARK),
    "channel": ("s", ACCENT, ACCENT), "refine": ("o", DARK, DARK),
}  # fmt: skip
STEP_LINES: dict[str, tuple[Any, str, str]] = {
    "spatial": ("-", DARK, "D"),
    "channel": ("--", ACCENT, "s"),
    "prune": (":", MIDDLE, "v"),
}
STEP_LABELS = {
    "refit": "refit", "prune": "channel pruning", "spatial": "spatial decomposition",
    "channel": "channel decomposition", "refine": "refinement",
}  # fmt: skip
LEAST_ERROR = 1e-5  # smaller errors are drawn at this one: a logarithmic axis has no zero
ALL = slice(None)


def names_of(table: Table) -> list[str]:
    """The layers of a table that have a row in its figure, each once."""
    rows = [row for row in table.dicts() if row.get("step") != "before"]
    return list(dict.fromkeys(row["layer"] for row in rows))


def _label_width(width: float) -> int:
    return 26 if width >= WIDE else 14


def _step_label(step: str, width: float) -> str:
    """Name of a step in a legend; short in a narrow figure."""
    return STEP_LABELS[step] if width >= WIDE else {"prune": "pruning"}.get(step, step)


def layer_costs(table: Table, width: float = WIDE, part: slice = ALL) -> Figure:
    """Multiply-accumulates of each layer: a wide bar before, and inside it a narrow bar after."""
    rows, everything = table.dicts()[part], table.dicts()
    figure = new_figure(1.0 + ROW * len(rows), width)
    axes, y = row_axes(figure, labels((row["layer"] for row in everything), _label_width(width))[part])
    before, after = (np.array([row[name] for row in rows]) / 1e6 for name in ("macs_before", "macs_after"))
    wide = axes.barh(y, before, 0.78, color=LIGHT, edgecolor=EDGE, linewidth=0.6, label="original")
    slim = axes.barh(y, after, 0.4, color=DARK, label=table.summary.network if table.summary else "decomposed")
    for at, one, other in zip(y, before, after):
        axes.text(max(one, other), at, f" {one / other:.1f}x" if other else "", va="center", fontsize=SMALL)
    for row, *bars in zip(rows, wide, slim):
        for bar in bars:
            tip(bar, layer_words(row))
    each = " per image" if width >= WIDE else ""
    axes.set(xlabel=f"multiply-accumulates{each}, millions", ylabel="layer")
    most = max(max(row["macs_before"], row["macs_after"]) for row in everything) / 1e6
    axes.set_xlim(0, (1.1 if width >= WIDE else 1.25) * most)
    if part.start in (None, 0):
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def layer_words(row: dict[str, Any]) -> str:
    """The costs of a layer in one line."""
    before, after = row["macs_before"], row["macs_after"]
    ratio = f" ({before / after:.2f}x)" if after else ""
    return f"{row['layer']}: {before / 1e6:,.3g} M → {after / 1e6:,.3g} M multiply-accumulates{ratio}"


def layer_errors(table: Table, width: float = WIDE, part: slice = ALL) -> Figure | None:
    """Error of each layer's responses after each of its steps, as dots on a logarithmic scale."""
    rows, names = [row for row in table.dicts() if row["step"] != "before"], names_of(table)
    if not names:
        return None
    held_out = all(row["held_out"] is not None for row in rows)
    column, on = ("held_out", "held-out") if held_out else ("fitted", "fitted")
    shown = names[part]
    figure = new_figure(1.15 + ROW * len(shown), width)
    axes, y = row_axes(figure, labels(names, _label_width(width))[part])
    place = dict(zip(shown, y))
    for name in shown:
        values = [_drawn(row[column]) for row in rows if row["layer"] == name]
        axes.plot([min(values), max(values)], [place[name]] * 2, color=FAINT, linewidth=1, zorder=1)
    for step, (mark, face, edge) in STEP_MARKS.items():
        if any(row["step"] == step for row in rows):  # in any part, for the legend of the first
            chosen = [row for row in rows if row["step"] == step and row["layer"] in place]
            x, at = [_drawn(row[column]) for row in chosen], [place[row["layer"]] for row in chosen]
            label = _step_label(step, width)
            dots = axes.scatter(
                x, at, marker=mark, facecolor=face, edgecolor=edge, s=30, linewidth=0.9, label=label, zorder=2
            )
            tip(dots, *(f"{row['layer']}, {label}: {100 * row[column]:.3f} %, {on} images" for row in chosen))
    axes.set_xscale("log")
    ends = [_drawn(row[column]) for row in rows]
    low, high = 0.8 * min(ends), 1.25 * max(ends)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(numticks=7 if width >= WIDE else 4))
    axes.xaxis.set_major_formatter(_percent)
    if high < 10 * low:  # at most one power of ten is on the axis: the ticks between get labels too
        axes.xaxis.set_minor_formatter(_percent)
    space = " " if width >= WIDE else "\n"
    axes.set(xlabel=f"relative squared error of responses,{space}{on} images", ylabel="layer")
    if part.start in (None, 0):
        figure.legend(loc="outside upper left", ncols=5 if width >= WIDE else 2, handletextpad=0.2, columnspacing=1.2)
    return figure


def _percent(value: float, _: object) -> str:
    return f"{value:.10%}".rstrip("0%").rstrip(".") + " %"


def _drawn(error: float) -> float:
    return max(error, LEAST_ERROR)


def error_curves(table: Table, width: float = WIDE, part: slice = ALL) -> Figure:
    """A small panel for each layer: error at every size of every step, with the chosen size marked."""
    rows, everything = table.dicts(), names_of(table)
    names = everything[part]
    # Four panels in a line, or three where the last line would hold but one or two.
    columns = min(len(everything), (3 if len(everything) in (5, 6, 9) else 4) if width >= WIDE else 2)
    lines = -(-len(names) // columns)
    figure = new_figure(1.0 + 1.6 * lines, width)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    by_layer: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], {}).setdefault(row["step"], []).append(row)
    for column, panel in enumerate(panels.flat[len(names) :], len(names) % columns):
        panel.set_visible(False)
        panels[-2, column].tick_params(labelbottom=True)  # now the lowest of its column
    titles = labels(everything, 20)[part]
    for name, title, panel in zip(names, titles, panels.flat):
        for step, points in by_layer[name].items():
            _curve(panel, name, step, points)
        panel.set_title(title, pad=2, fontsize=SMALL)
        panel.set_yscale("log")
    panels[0, 0].set_ylim(min(0.5, 0.8 * min(_drawn(row["error"]) for row in rows)), 1.5)
    panels[0, 0].set_xlim(0, 1)
    panels[0, 0].set_xticks([0, 0.5, 1], ["0", "½", "1"])
    figure.supxlabel("size, as a share of the full size (mark: chosen size)", fontsize=9.5)
    figure.supylabel("relative squared error", fontsize=9.5)
    handles = [
        Line2D([], [], linestyle=line, color=colour, marker=mark, label=_step_label(step, width))
        for step, (line, colour, mark) in STEP_LINES.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def _curve(panel: Any, layer: str, step: str, points: Sequence[dict[str, Any]]) -> None:
    line, colour, mark = STEP_LINES[step]
    x, y = [p["size"] / p["full_size"] for p in points], [_drawn(p["error"]) for p in points]
    (drawn,) = panel.plot(x, y, line, color=colour, linewidth=1.3)
    tip(drawn, f"{layer}, {STEP_LABELS[step]}: {len(points):,} sizes")
    words = next(item.words for item in STEP_TABLE if item.name == step)
    for at, value, point in zip(x, y, points):
        if point["chosen"]:
            (chosen,) = panel.plot(at, value, mark, color=colour, markersize=7, markeredgecolor=DARK, clip_on=False)
            size = f"{words.format(point['size'])} of {point['full_size']}"
            tip(chosen, f"{layer}: {size}, error {100 * point['error']:.3f} %")


def kept_channels(table: Table, width: float = WIDE, part: slice = ALL) -> Figure:
    """A row of cells for each pruned layer: kept channels filled, removed ones empty."""
    side = "output channel" if "output channel" in table.header else "input channel"
    rows: dict[str, list[int]] = {}
    for layer, _, kept in table.rows:
        rows.setdefault(layer, []).append(kept)
    names = list(rows)[part]
    figure = new_figure(0.9 + ROW * len(names), width)
    short_names = labels(rows, 22 if width >= WIDE else 12)[part]
    shown = [f"{label}  {sum(rows[name])}/{len(rows[name])}" for label, name in zip(short_names, names)]
    axes, y = row_axes(figure, shown)
    # The removed ones are transparent: the page is dark or light.
    colours = ListedColormap(["none", MIDDLE])
    for at, name in zip(y, names):
        n, kept = len(rows[name]), sum(rows[name])
        extent = (-0.5, n - 0.5, at - 0.36, at + 0.36)
        cells = np.array(rows[name])[None]
        axes.imshow(cells, cmap=colours, vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
        frame = axes.add_patch(Rectangle((-0.5, at - 0.36), n, 0.72, facecolor="none", edgecolor=RULE, linewidth=0.5))
        tip(frame, f"{name}: {kept} of {n} {side}s kept")
    axes.set_xlim(-0.5, max(map(len, rows.values())) - 0.5)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel=f"{side} (filled: kept, empty: removed)".replace(" (", " (" if width >= WIDE else "\n("),
        ylabel="kept/all" if len(names) < 3 else "layer, kept/all",  # a single row is not high enough for both
    )
    return figure
