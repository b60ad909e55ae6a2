"""Figures of whole networks: accuracy against time and cost, speed-ups, accuracy of each class, fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, BboxBase

from ..measure.intervals import share_words, wilson
from .figure_style import (
    ACCENT,
    DARK,
    FAINT,
    INK,
    LIGHT,
    MARKS,
    MIDDLE,
    PAPER,
    ROW,
    SMALL,
    WIDE,
    last_part,
    new_figure,
    percent_tick,
    row_axes,
    share_axis,
    short,
    tip,
)  # fmt: skip
from .tables import Table

#: Classes in the figure of classes; of more, those that lost most.
MOST_CLASSES = 24
#: Validation without labels, of class scores and of other outputs.
VALIDATION = ("validation_divergence", "validation_change")
Costs = tuple[tuple[str, float, str, str], ...]
#: Horizontal axes of the figure of accuracy: column, unit, label, speed-up beside a point.
COSTS: Costs = (
    ("latency_ms", 1.0, "measured time of a batch, ms", "measured_speedup"),
    ("macs", 1e6, "multiply-accumulates per image, millions", "counted_speedup"),
)
#: Columns by which networks are judged, the first that has values, and the label of the axis.
MEASURES = {
    "top1": "top-1 accuracy",
    "agreement": "same top class as the original",
    "output_difference": "change of the outputs",
}
#: Columns with the quartiles of a column of times.
QUARTILES = {"latency_ms": ("latency_low_ms", "latency_high_ms"), "time": ("time_low", "time_high")}
COSTS_OF_SEVERAL: Costs = (
    ("time", 0.01, "measured time, % of the original's in the same run", "measured_speedup"),
    COSTS[1],
)


def measure_of(rows: Sequence[dict[str, Any]]) -> str | None:
    """The column by which networks are judged: accuracy, without labels likeness, for outputs of other kinds change."""
    return next((name for name in MEASURES if rows[0][name] is not None), None)


def accuracy(table: Table, width: float = WIDE, part: slice = slice(None)) -> Figure | None:
    """Accuracy against measured time and against counted cost, a panel each; `part` selects among the panels.

    Without labels it is the likeness to the original, or the change of the outputs.
    """
    rows = table.dicts()
    measure = measure_of(rows)
    if measure is None:
        return None
    several = len({row["run"] for row in rows}) > 1
    costs = (COSTS_OF_SEVERAL if several else COSTS)[part]
    stacked = several or width < WIDE
    height = (2.9 if several else 2.7) * (len(costs) if stacked else 1)
    figure = new_figure(height, width)
    panels = figure.subplots(*((len(costs), 1) if stacked else (1, len(costs))), squeeze=False).flat
    placed = []
    if several:
        rows = _relative_times(rows)
    for panel, (column, unit, name, speedup) in zip(panels, costs):
        brief = name if width >= WIDE else name.replace(" per image", "").replace(" in the same run", "")
        panel.set(xlabel=brief, ylabel=MEASURES[measure])
        placed.append(_points(panel, rows, measure, (column, unit, speedup), several, width))
    there = {row["network"] for row in rows}
    handles = [
        Line2D([], [], linestyle="none", marker=mark, color=colour, markersize=7, label=name)
        for name, (mark, colour) in MARKS.items()
        if name in there
    ]
    if part.start in (None, 0):
        figure.legend(handles=handles, loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.2)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel, (points, texts) in zip(figure.axes, placed):
        _label(figure, panel, points, texts)
    return figure


def _relative_times(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with times as shares of the original's in the same run: runs are measured at different times."""
    own = {row["run"]: row["latency_ms"] for row in rows if row["network"] == "original"}
    times = {"time": "latency_ms", "time_low": "latency_low_ms", "time_high": "latency_high_ms"}
    return [
        {**row, **{key: row[column] / own.get(row["run"], row["latency_ms"]) for key, column in times.items()}}
        for row in rows
    ]


def _points(
    axes: Axes, rows: Sequence[dict[str, Any]], measure: str, axis: tuple[str, float, str], several: bool, width: float
) -> tuple[list[tuple[float, float]], list[str]]:
    """Draw a mark with its interval for each network; their positions, and the texts to write beside them."""
    column, unit, speedup = axis
    runs = list(dict.fromkeys(row["run"] for row in rows))
    points: list[tuple[float, float]] = []
    texts: list[str] = []
    ends: list[float] = []
    reach: list[float] = []
    for name, (mark, colour) in MARKS.items():
        chosen = sorted((row for row in rows if row["network"] == name), key=lambda row: row[column])
        if name == "original" and several:  # the same in every run of one network
            chosen = list({(row["macs"], row[measure]): row for row in chosen}.values())
        for row in chosen:
            x, y = row[column] / unit, row[measure]
            low, high = _interval(row, measure)
            across = None
            if column in QUARTILES and not (name == "original" and several):
                first, third = (row[end] / unit for end in QUARTILES[column])
                across = [[x - first], [third - x]]
                reach.append(third)
            bars = axes.errorbar(
                [x], [y], [[y - low], [high - y]], across, fmt=mark, color=colour, markersize=7, elinewidth=1, capsize=2
            )
            for artist in (bars.lines[0], *bars.lines[2]):
                tip(artist, network_words(row, measure, several))
            points.append((x, y))
            ends += [low, high]
            # Fine-tuning moves a point up or down only: of several runs, one of the two points gets the name.
            run = last_part(row["run"]) if width >= WIDE else str(runs.index(row["run"]) + 1)
            several_words = {"original": "", "decomposed": run, "pruned": run}.get(name, "")
            alone = "" if name == "original" else f"{row[speedup]:.1f}x"
            texts.append(several_words if several else alone)
    share_axis(axes, ends)
    most = max(x for x, _ in points)
    axes.set_xlim(0, min(max(1.15 * most, 1.04 * max(reach, default=0)), 1.6 * most))
    return points, texts


def _interval(row: dict[str, Any], measure: str) -> tuple[float, float]:
    n = row["n_images"]
    itself = measure == "agreement" and row["network"] == "original"  # on every image
    if not n or measure == "output_difference" or itself:
        return row[measure], row[measure]
    low, high = wilson(round(row[measure] * n), n)
    return min(low, row[measure]), max(high, row[measure])


def network_words(row: dict[str, Any], measure: str, several: bool) -> str:
    """The measurements of a network in one line."""
    n = row["n_images"]
    is_share = n and measure != "output_difference"
    share = share_words(row[measure], n) if is_share else f"{100 * row[measure]:.2g} %"
    name = f"{row['run']}: {row['network']}" if several else row["network"]
    what = {"top1": "top-1", "agreement": "same top class"}.get(measure, "change of the outputs")
    return (
        f"{name}: {what} {share}; {row['latency_ms']:,.3g} ms "
        f"({row['latency_low_ms']:,.3g} to {row['latency_high_ms']:,.3g}), {row['measured_speedup']:.2f}x as fast; "
        f"{row['macs'] / 1e6:,.2f} M multiply-accumulates, {row['counted_speedup']:.2f}x fewer"
    )


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write a text beside each point without covering a point or another text, and no interval where there is room."""
    pixels = axes.transData.transform(points)
    taken: list[BboxBase] = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
    intervals = [
        Bbox(axes.transData.transform(segment)).padded(1)
        for lines in axes.collections
        if isinstance(lines, LineCollection)
        for segment in lines.get_segments()
    ]
    for point, text in (pair for pair in zip(points, texts) if pair[1]):
        box = _place(figure, axes, point, text, [*taken, *intervals]) or _place(figure, axes, point, text, taken)
        taken += [box] if box else []


def _place(
    figure: Figure, axes: Axes, point: tuple[float, float], text: str, taken: Sequence[BboxBase]
) -> BboxBase | None:
    """Write a text as near as possible to a point outside of the boxes that are taken; the box it takes."""
    renderer, frame = FigureCanvasAgg(figure).get_renderer(), figure.bbox
    for ring in range(1, 12):
        for dx, dy in ((1, 0.3), (-1, 0.3), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            offset = (dx * (5 + 4 * ring), dy * (4 + 5 * ring))
            side = {0: "center", 1: "left", -1: "right"}[dx]
            note = axes.annotate(
                text, point, offset, textcoords="offset points", ha=side, va="bottom" if dy > 0 else "top",
                fontsize=SMALL, arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.5} if ring > 2 else None,
            )  # fmt: skip
            box = note.get_window_extent(renderer).padded(1)
            inside = axes.bbox.x0 < box.x0 and box.x1 < frame.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                return box
            note.remove()
    return None


def latency(table: Table, width: float = WIDE) -> Figure | None:
    """Speed-up in multiply-accumulates and in measured time, a pair of bars for each network."""
    rows = [row for row in table.dicts() if row["network"] != "original"]
    if not rows:
        return None
    originals = {row["run"]: row["latency_ms"] for row in table.dicts() if row["network"] == "original"}
    several = len(originals) > 1
    figure = new_figure(1.1 + 0.5 * len(rows), width)
    axes = figure.add_subplot()
    y = np.arange(len(rows))[::-1]
    counted, measured = ([row[name] for row in rows] for name in ("counted_speedup", "measured_speedup"))
    base = [originals.get(row["run"], row["latency_ms"]) for row in rows]
    reach = [
        [max(row["measured_speedup"] - b / row["latency_high_ms"], 0) for row, b in zip(rows, base)],
        [max(b / row["latency_low_ms"] - row["measured_speedup"], 0) for row, b in zip(rows, base)],
    ]
    bars = axes.barh(y + 0.19, counted, 0.36, color=LIGHT, edgecolor=DARK, label="multiply-accumulates")
    timed = axes.barh(y - 0.19, measured, 0.36, color=MIDDLE, edgecolor=DARK, label="measured time")
    axes.errorbar(measured, y - 0.19, xerr=reach, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
    for row, one, other in zip(rows, bars, timed):
        tip(one, f"{row['network']}: {row['counted_speedup']:.2f}x fewer multiply-accumulates")
        tip(other, f"{row['network']}: {row['measured_speedup']:.2f}x as fast, {row['latency_ms']:,.3g} ms")
    for at, (one, other, more) in enumerate(zip(counted, measured, reach[1])):
        for x, height, value in ((one, 0.19, one), (other + more, -0.19, other)):
            beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            paper = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}  # covers the line at 1 behind the text
            axes.annotate(f"{value:.2f}x", (x, y[at] + height), fontsize=SMALL, **beside, bbox=paper)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    names = [f"{last_part(row['run'])}: {row['network']}" if several else row["network"] for row in rows]
    axes.set_yticks(y, [name.replace(": ", ":\n") for name in names] if width < WIDE else names)
    axes.set(xlabel="speed-up over the original")
    axes.set_xlim(0, 1.18 * max(*counted, *(value + more for value, more in zip(measured, reach[1]))))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def classes(table: Table, width: float = WIDE) -> Figure:
    """Accuracy of each class, a mark for each network; of many classes, those that lost most."""
    rows = worst_classes(table)
    networks = [name.removeprefix("correct_") for name in table.header if name.startswith("correct_")]
    figure = new_figure(0.95 + ROW * len(rows), width)
    axes, y = row_axes(figure, [short(row["class"], 26 if width >= WIDE else 14) for row in rows])
    for at, row in zip(y, rows):
        values = [row[f"correct_{name}"] / row["images"] for name in networks]
        axes.plot([min(values), max(values)], [at, at], color=FAINT, linewidth=1, zorder=1)
    # One above the other, so that equal values stay visible.
    shifts = np.linspace(0.22, -0.22, len(networks)) if len(networks) > 1 else [0.0]
    for name, shift in zip(networks, shifts):
        mark, colour = MARKS[name]
        x = [row[f"correct_{name}"] / row["images"] for row in rows]
        dots = axes.scatter(x, y + shift, marker=mark, color=colour, s=20, label=name, zorder=2)
        tip(dots, *(f"{row['class']}, {name}: {_class_words(row, name)}" for row in rows))
    ends = [row[f"correct_{name}"] / row["images"] for row in rows for name in networks]
    low = min(ends) - 0.04 * max(1 - min(ends), 0.05)
    axes.set_xlim(max(low, -0.02), 1 + 0.03 * (1 - low))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xticks([float(tick) for tick in axes.get_xticks() if low <= tick <= 1 + 1e-9])
    axes.xaxis.set_major_formatter(percent_tick)
    axes.set(xlabel="accuracy on the test images of the class", ylabel="class")
    figure.legend(loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.2)
    return figure


def _class_words(row: dict[str, Any], network: str) -> str:
    n = row["images"]
    return f"{row[f'correct_{network}']:,} of {n:,}, {share_words(row[f'correct_{network}'] / n, n)}"


def worst_classes(table: Table) -> list[dict[str, Any]]:
    """The classes with images, in their order; of more than :data:`MOST_CLASSES`, those that lost most come first."""
    rows = [row for row in table.dicts() if row["images"]]
    if len(rows) <= MOST_CLASSES:
        return rows
    first, *_, last = [name for name in table.header if name.startswith("correct_")]
    return sorted(rows, key=lambda row: (row[last] - row[first]) / row["images"])[:MOST_CLASSES]


def finetuning(table: Table, width: float = WIDE) -> Figure:
    """Loss and validation value of each epoch, one panel each."""
    names = [name for name in ("loss", "validation_loss", *VALIDATION) if name in table.header]
    second = "validation_accuracy" if "validation_accuracy" in table.header else None
    n_panels, stacked = 2 if second else 1, width < WIDE
    figure = new_figure(2.6 * (n_panels if stacked else 1) + 0.3, width)
    panels = figure.subplots(*((n_panels, 1) if stacked else (1, n_panels)), squeeze=False).flat
    epochs = [int(epoch) for epoch in table.column("epoch")]
    styles = {"loss": ("o-", DARK, "training"), "validation_loss": ("s--", ACCENT, "held-out images")}
    first = panels[0]
    for name in names:
        line, colour, label = styles.get(name, ("s--", ACCENT, "held-out images"))
        points = [(e, v) for e, v in zip(epochs, table.column(name)) if v is not None]
        if points:
            (drawn,) = first.plot(*zip(*points), line, color=colour, label=label, markersize=4)
            tip(drawn, *(f"epoch {e}: loss {v:.4g}, {label}" for e, v in points))
    unit = "change of the outputs" if VALIDATION[1] in names else "loss, nats"
    first.set(xlabel="epoch (0: before fine-tuning)", ylabel=unit)
    first.set_ylim(bottom=0)
    if second:
        (drawn,) = panels[1].plot(epochs, table.column(second), "^-", color=MIDDLE, markersize=5)
        tip(
            drawn, *(f"epoch {e}: {100 * v:.2f} % of the held-out images" for e, v in zip(epochs, table.column(second)))
        )
        panels[1].set(xlabel="epoch (0: before fine-tuning)", ylabel="accuracy, held-out images")
        share_axis(panels[1], table.column(second))
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=2)
    return figure
