"""Figures of the report, drawn from its tables with matplotlib.

Markers, lines and bars differ in shape, style or lightness as well as in colour, so that a page printed in grey can be
read. A figure with a row for each layer grows in height with the number of layers, so that its labels never overlap.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import Bbox

from .collect import Table

WIDTH, ROW, DPI = 7.6, 0.24, 140  # inches, inches, dots per inch
DARK, MIDDLE, LIGHT, ACCENT = "#16324f", "#5b83a8", "#cfdbe6", "#b4531f"
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "figure.constrained_layout.use": True,
    "axes.titlesize": 9, "axes.edgecolor": "#666666", "svg.hashsalt": "decomp",
}  # fmt: skip
MARKS = {"original": ("o", DARK), "decomposed": ("s", MIDDLE), "fine-tuned": ("^", ACCENT)}
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


def draw(table: Table, path: str | os.PathLike[str]) -> bool:
    """Draw a table into a PNG file.

    Parameters
    ----------
    table : decomp.pipelines.reporting.collect.Table
    path : path

    Returns
    -------
    bool
        False where there is nothing to draw and no file is written.
    """
    with matplotlib.rc_context(STYLE):
        figure = DRAWINGS[table.name](table)
        if figure is None:
            return False
        FigureCanvasAgg(figure)
        figure.savefig(os.fspath(path), dpi=DPI, format="png", metadata={"Software": "decomp"})
    return True


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height))


def short(name: object, most: int = 26) -> str:
    """A name of at most `most` characters; the middle of a longer one is replaced by an ellipsis."""
    name = str(name)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def labels(names: Iterable[str], most: int = 26) -> list[str]:
    """Short labels for the names of layers, all different.

    In a path that is too long the parts before the last are shortened to two letters and their number
    (``features.stage2.block7.conv1`` to ``fe.st2.bl7.conv1``); equal results get their position as a prefix.
    """
    shortened = []
    for name in map(str, names):
        *inner, last = name.split(".")
        if len(name) > most:
            name = ".".join([*(re.sub(r"^([^0-9]{2})[^0-9]*", r"\1", part) for part in inner), last])
        shortened.append(name)
    shortened = [short(name, most) for name in shortened]
    return [f"{i} {short(name, most - 4)}" if shortened.count(name) > 1 else name for i, name in enumerate(shortened)]


# -- networks ----------------------------------------------------------------------------------------------


def accuracy(table: Table) -> Figure | None:
    """Accuracy (or agreement with the original, without labels) against multiply-accumulates."""
    rows = table.dicts()
    measure = next((name for name in ("top1", "agreement") if rows[0][name] is not None), None)
    if measure is None:
        return None
    figure = _figure(3.6)
    axes = figure.add_subplot()
    label = "top-1 accuracy on test images" if measure == "top1" else "same top class as the original, test images"
    axes.set(xlabel="multiply-accumulates per image, millions", ylabel=label)
    points: list[tuple[float, float]] = []
    texts: list[str] = []
    several = len({row["run"] for row in rows}) > 1
    for name, (mark, colour) in MARKS.items():
        chosen = sorted((row for row in rows if row["network"] == name), key=lambda row: row["macs"])
        if name == "original":  # the same in every run of one network
            chosen = list({(row["macs"], row[measure]): row for row in chosen}.values())
        if not chosen:
            continue
        x, y = [row["macs"] / 1e6 for row in chosen], [row[measure] for row in chosen]
        axes.plot(x, y, marker=mark, color=colour, label=name, linestyle="none", markersize=7)
        for row, at in zip(chosen, zip(x, y)):
            points.append(at)
            speedup = f"{row['counted_speedup']:.1f}x"
            # Fine-tuning moves a point up or down only: of several runs, one of the two points gets the name.
            named = {"original": speedup, "decomposed": f"{speedup} {_last(row['run'])}"}.get(name, "")
            texts.append(named if several else speedup)
    _shares(axes, [y for _, y in points])
    axes.set_xlim(0, 1.12 * max(x for x, _ in points))
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.14), ncols=3)
    FigureCanvasAgg(figure)
    _label(figure, axes, points, texts)
    return figure


def _shares(axes: Axes, values: Sequence[float]) -> None:
    """Format the vertical axis for shares in 0..1: percentages, a margin, no tick above 100 %."""
    low, high = min(values), max(values)
    room = max(0.15 * (high - low), 0.01)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_yticks([float(tick) for tick in axes.get_yticks() if low - room <= tick <= min(1 + 1e-9, high + room)])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _last(path: object) -> str:
    return short(str(path).replace("\\", "/").rstrip("/").split("/")[-1], 18)


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write a text beside each point, as near as possible without covering a point or another text."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
    frame = figure.bbox
    for point, text in (pair for pair in zip(points, texts) if pair[1]):
        for ring in range(1, 12):
            found = None
            for dx, dy in ((0, 1), (0, -1), (1, 0.3), (-1, 0.3), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                offset = (dx * (5 + 4 * ring), dy * (4 + 5 * ring))
                side = {0: "center", 1: "left", -1: "right"}[dx]
                note = axes.annotate(
                    text, point, offset, textcoords="offset points", ha=side, va="bottom" if dy > 0 else "top",
                    fontsize=8, arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.5} if ring > 2 else None,
                )  # fmt: skip
                box = note.get_window_extent(renderer).padded(1)
                inside = axes.bbox.x0 < box.x0 and box.x1 < frame.x1 and axes.bbox.y0 < box.y0 and box.y1 < frame.y1
                if inside and not any(box.overlaps(other) for other in taken):
                    found = box
                    break
                note.remove()
            if found is not None:
                taken.append(found)
                break


def latency(table: Table) -> Figure | None:
    """Speed-up in multiply-accumulates and in measured time, a pair of bars for each network."""
    rows = [row for row in table.dicts() if row["network"] != "original"]
    if not rows:
        return None
    originals = {row["run"]: row["latency_ms"] for row in table.dicts() if row["network"] == "original"}
    several = len(originals) > 1
    figure = _figure(1.1 + 0.5 * len(rows))
    axes = figure.add_subplot()
    y = np.arange(len(rows))[::-1]
    counted, measured = ([row[name] for row in rows] for name in ("counted_speedup", "measured_speedup"))
    base = [originals.get(row["run"], row["latency_ms"]) for row in rows]
    reach = [
        [max(row["measured_speedup"] - b / row["latency_high_ms"], 0) for row, b in zip(rows, base)],
        [max(b / row["latency_low_ms"] - row["measured_speedup"], 0) for row, b in zip(rows, base)],
    ]
    axes.barh(y + 0.19, counted, 0.36, color=LIGHT, edgecolor=DARK, label="multiply-accumulates")
    axes.barh(y - 0.19, measured, 0.36, color=MIDDLE, edgecolor=DARK, hatch="///", label="measured time")
    axes.errorbar(measured, y - 0.19, xerr=reach, fmt="none", ecolor="black", elinewidth=1, capsize=3)
    for at, (one, other, (_, more)) in enumerate(zip(counted, measured, zip(*reach))):
        for x, height, value in ((one, 0.19, one), (other + more, -0.19, other)):
            beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # covers the line at 1 behind the text
            axes.annotate(f"{value:.2f}x", (x, y[at] + height), **beside, bbox=paper)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(y, [f"{_last(row['run'])}: {row['network']}" if several else row["network"] for row in rows])
    axes.set(xlabel="speed-up over the original (bars: medians; whiskers: quartiles of the network's own time)")
    axes.set_xlim(0, 1.15 * max(*counted, *(value + more for value, more in zip(measured, reach[1]))))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


# -- layers ------------------------------------------------------------------------------------------------


def _layer_axes(figure: Figure, names: Sequence[str]) -> tuple[Axes, np.ndarray]:
    axes = figure.add_subplot()
    y = np.arange(len(names))[::-1]
    axes.set_yticks(y, names, fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(axis="y", visible=False)
    return axes, y


def layer_costs(table: Table) -> Figure:
    """Multiply-accumulates of each layer: a wide bar before, and inside it a narrow bar after."""
    rows = table.dicts()
    figure = _figure(1.0 + ROW * len(rows))
    axes, y = _layer_axes(figure, labels(row["layer"] for row in rows))
    before, after = (np.array([row[name] for row in rows]) / 1e6 for name in ("macs_before", "macs_after"))
    axes.barh(y, before, 0.78, color=LIGHT, edgecolor="#7d93a8", linewidth=0.6, label="original")
    axes.barh(y, after, 0.4, color=DARK, label="decomposed")
    for at, one, other in zip(y, before, after):
        axes.text(max(one, other), at, f" {one / other:.1f}x" if other else "", va="center", fontsize=7)
    axes.set(
        xlabel="multiply-accumulates per image, millions (beside the bars: ratio of before to after)", ylabel="layer"
    )
    axes.set_xlim(0, 1.08 * max(*before, *after))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def layer_errors(table: Table) -> Figure | None:
    """Error of each layer's responses after each of its steps, as dots on a logarithmic scale."""
    rows = [row for row in table.dicts() if row["step"] != "before"]
    names = list(dict.fromkeys(row["layer"] for row in rows))
    if not names:
        return None
    held_out = all(row["held_out"] is not None for row in rows)
    figure = _figure(1.1 + ROW * len(names))
    axes, y = _layer_axes(figure, labels(names))
    place = dict(zip(names, y))
    for name in names:
        values = [_drawn(row["held_out" if held_out else "fitted"]) for row in rows if row["layer"] == name]
        axes.plot([min(values), max(values)], [place[name]] * 2, color="#bbbbbb", linewidth=1, zorder=1)
    for step, (mark, face, edge) in STEP_MARKS.items():
        chosen = [row for row in rows if row["step"] == step]
        x = [_drawn(row["held_out" if held_out else "fitted"]) for row in chosen]
        if x:
            at = [place[row["layer"]] for row in chosen]
            label = STEP_LABELS[step]
            axes.scatter(x, at, marker=mark, facecolor=face, edgecolor=edge, s=30, linewidth=0.9, label=label, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_percent)
    low, high = axes.get_xlim()
    if high < 10 * low:  # at most one power of ten is on the axis: the ticks between get labels too
        axes.xaxis.set_minor_formatter(_percent)
    on = "held-out" if held_out else "fitted"
    axes.set(xlabel=f"relative squared error of the layer's responses, {on} images", ylabel="layer")
    figure.legend(loc="outside upper left", ncols=5, fontsize=8, handletextpad=0.2, columnspacing=1.2)
    return figure


def _percent(value: float, _: object) -> str:
    return f"{value:.10%}".rstrip("0%").rstrip(".") + " %"


def _drawn(error: float) -> float:
    return max(error, LEAST_ERROR)


def error_curves(table: Table) -> Figure:
    """A small panel for each layer: error at every size of every step, with the chosen size marked."""
    rows = table.dicts()
    names = list(dict.fromkeys(row["layer"] for row in rows))
    columns = min(len(names), 4 if len(names) <= 24 else 6)
    lines = -(-len(names) // columns)
    figure = _figure(0.9 + 1.55 * lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    by_layer: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], {}).setdefault(row["step"], []).append(row)
    for column, panel in enumerate(panels.flat[len(names) :], len(names) % columns):
        panel.set_visible(False)
        panels[-2, column].tick_params(labelbottom=True)  # now the lowest of its column
    titles = labels(names, 24 if columns <= 4 else 18)
    for name, title, panel in zip(names, titles, panels.flat):
        for step, points in by_layer[name].items():
            line, colour, mark = STEP_LINES[step]
            x, y = [p["size"] / p["full_size"] for p in points], [_drawn(p["error"]) for p in points]
            panel.plot(x, y, line, color=colour, linewidth=1.3)
            for at, value, point in zip(x, y, points):
                if point["chosen"]:
                    panel.plot(at, value, mark, color=colour, markersize=7, markeredgecolor="black", clip_on=False)
        panel.set_title(title, pad=2, fontsize=9 if columns <= 4 else 7)
        panel.set_yscale("log")
        panel.tick_params(labelsize=7)
    panels[0, 0].set_ylim(top=1.5)
    panels[0, 0].set_xlim(0, 1)
    panels[0, 0].set_xticks([0, 0.5, 1], ["0", "½", "1"])
    figure.supxlabel(
        "size relative to the full size: rank, or number of input channels (marker: chosen size)", fontsize=9
    )
    figure.supylabel("relative squared error", fontsize=9)
    handles = [
        Line2D([], [], linestyle=line, color=colour, marker=mark, label=STEP_LABELS[step])
        for step, (line, colour, mark) in STEP_LINES.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def kept_channels(table: Table) -> Figure:
    """A row of cells for each pruned layer: kept input channels dark, removed ones light."""
    rows: dict[str, list[int]] = {}
    for layer, _, kept in table.rows:
        rows.setdefault(layer, []).append(kept)
    names = list(rows)
    figure = _figure(0.9 + ROW * len(names))
    shown = [f"{label}  {sum(kept)}/{len(kept)}" for label, kept in zip(labels(names, 22), rows.values())]
    axes, y = _layer_axes(figure, shown)
    colours = ListedColormap(["#f1e3d6", DARK])
    for at, name in zip(y, names):
        width = len(rows[name])
        cells = np.array(rows[name])[None]
        extent = (-0.5, width - 0.5, at - 0.36, at + 0.36)
        axes.imshow(cells, cmap=colours, vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
        axes.add_patch(Rectangle((-0.5, at - 0.36), width, 0.72, fill=False, edgecolor="#666666", linewidth=0.5))
    axes.set_xlim(-0.5, max(map(len, rows.values())) - 0.5)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="input channel, in the order of the original (dark: kept, light: removed)",
        ylabel="kept/all" if len(names) < 3 else "layer, kept/all",  # a single row is not high enough for both
    )
    return figure


# -- fine-tuning -------------------------------------------------------------------------------------------


def finetuning(table: Table) -> Figure:
    """Loss and validation value of each epoch, one panel each."""
    names = [name for name in ("loss", "validation_loss", "validation_divergence") if name in table.header]
    second = "validation_accuracy" if "validation_accuracy" in table.header else None
    figure = _figure(2.9)
    panels = figure.subplots(1, 2 if second else 1, squeeze=False)[0]
    epochs = table.column("epoch")
    styles = {"loss": ("o-", DARK, "training"), "validation_loss": ("s--", ACCENT, "held-out images")}
    for name in names:
        line, colour, label = styles.get(name, ("s--", ACCENT, "held-out images"))
        points = [(e, v) for e, v in zip(epochs, table.column(name)) if v is not None]
        if points:
            panels[0].plot(*zip(*points), line, color=colour, label=label, markersize=4)
    panels[0].set(xlabel="epoch (0: before fine-tuning)", ylabel="loss, nats")
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    if second:
        panels[1].plot(epochs, table.column(second), "^-", color=MIDDLE, markersize=5)
        panels[1].set(xlabel="epoch (0: before fine-tuning)", ylabel="accuracy on held-out images")
        _shares(panels[1], table.column(second))
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


#: The function that draws each table.
DRAWINGS: dict[str, Callable[[Table], Figure | None]] = {
    "accuracy": accuracy, "latency": latency, "layers": layer_costs, "errors": layer_errors, "curves": error_curves,
    "channels": kept_channels, "finetuning": finetuning,
}  # fmt: skip
