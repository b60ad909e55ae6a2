"""Figures of trainings: curves with the epochs in which filters were absent, and the on/off map of filters."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figure_style import ACCENT, DARK, EDGE, GRID, INK, LIGHT, MIDDLE, PAPER, WIDE, labels, last_part, new_figure, tip
from .tables import Table

#: Lines of several trainings; more repeat them.
LINES = ((DARK, "-"), (ACCENT, "--"), (MIDDLE, "-."), (EDGE, ":"))
#: Most epochs whose points are marked.
MARKED = 40


def training(table: Table, width: float = WIDE) -> Figure:
    """Loss and accuracy on the held-out images by epoch, a line for each run; grey where filters are absent."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in table.dicts():
        runs.setdefault(row["run"], []).append(row)
    stacked = width < WIDE
    figure = new_figure(2.6 * (2 if stacked else 1) + 0.4, width)
    panels = figure.subplots(*((2, 1) if stacked else (1, 2)), squeeze=False).flat
    for axes, (name, label) in zip(
        panels, (("loss", "training loss, nats"), ("validation_accuracy", "accuracy, held-out images"))
    ):
        _shade(axes, list(runs.values()))
        for (run, rows), (colour, line) in zip(runs.items(), LINES * len(runs)):
            points = [(row["epoch"], row[name]) for row in rows if row[name] is not None]
            mark = "o" if len(points) <= MARKED else ""
            (drawn,) = axes.plot(*zip(*points), line, marker=mark, markersize=3, color=colour, label=last_part(run))
            shown = "loss {:.4g}" if name == "loss" else "{:.2%} of the held-out images"
            tip(drawn, *(f"{last_part(run)}, epoch {e}: {shown.format(v)}" for e, v in points))
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _accuracy_axis(panels[1], [row["validation_accuracy"] for rows in runs.values() for row in rows])
    if len(runs) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=2 if stacked else 4)
    return figure


def _shade(axes: Axes, runs: list[list[dict[str, Any]]]) -> None:
    """Grey behind the epochs in which filters are absent, of the first run that has any."""
    rows = next((rows for rows in runs if any(row["live_filters"] < 1 for row in rows)), [])
    for row in rows:
        if row["live_filters"] < 1:
            axes.axvspan(row["epoch"] - 1, row["epoch"], color=GRID, linewidth=0, zorder=0)
        if row["event"]:
            axes.axvline(row["epoch"] - 1, color=INK, linewidth=0.8, linestyle=":", zorder=1)


def _accuracy_axis(axes: Axes, values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    if known:
        # The network before training is left out of the range: it would flatten all that follows.
        low = float(np.quantile(known, 0.1))
        axes.set_ylim(max(0.0, low - 0.25 * (1 - low) - 0.02), min(1.0, max(known)) + 0.01)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")


def filters(table: Table, width: float = WIDE) -> Figure:
    """A column for each drop, a row for each filter, layer by layer; dark where the filter was dropped."""
    layers = list(dict.fromkeys(table.column("layer")))
    columns = list(table.header[2:])
    kept = np.array([row[2:] for row in table.rows], dtype=float)
    figure = new_figure(min(7.0, 1.4 + 0.035 * len(kept) + 0.16 * len(layers)), width)
    axes = figure.add_subplot()
    axes.imshow(
        kept, aspect="auto", interpolation="nearest", cmap=ListedColormap([DARK, LIGHT]), vmin=0, vmax=1
    )  # fmt: skip
    counts = [table.column("layer").count(layer) for layer in layers]
    ends = np.cumsum(counts)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color=PAPER, linewidth=2)
    for place in range(1, len(columns)):
        axes.axvline(place - 0.5, color=PAPER, linewidth=2)
    starts = np.concatenate([[0], ends[:-1]])
    axes.set_yticks((starts + ends - 1) / 2, labels(layers, 26 if width >= WIDE else 12))
    axes.set_xticks(range(len(columns)), [name.replace("epoch ", "after\nepoch ") for name in columns])
    for place, name in enumerate(columns):
        for start, count in zip(starts, counts):
            share = 1 - kept[start : start + count, place].mean()
            if share > 0:
                text = axes.text(place, start + (count - 1) / 2, f"{100 * share:.0f} %", ha="center", va="center")
                text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 1.5})
                text.set_gid(f"share-{name}")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set(xlabel="dropped (dark), with the share of the layer", ylabel="layer")
    return figure
