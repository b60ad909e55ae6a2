"""Figures of a run of tasks: accuracy matrix as a heat map, owners of the weights of each layer, ladders of pruning."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figure_style import (
    ACCENT,
    DARK,
    DPI,
    EDGE,
    INK,
    LIGHT,
    MIDDLE,
    NARROW,
    PAPER,
    ROW,
    SMALL,
    STYLE,
    WIDE,
    labels,
    new_figure,
    percent_tick,
    row_axes,
    share_axis,
    short,
    tip,
)  # fmt: skip
from .svg import inline_svg

Draw = Callable[..., Figure]
#: Fill and hatch of each owner in turn: told apart in grey too.
FILLS = ((DARK, ""), (LIGHT, ""), (MIDDLE, ""), (ACCENT, ""), (LIGHT, "////"), (PAPER, "...."), (PAPER, "xxxx"))
LINES = (("o-", DARK), ("s--", ACCENT), ("^:", MIDDLE), ("D-.", DARK), ("v-", ACCENT), ("P--", MIDDLE))


def accuracy_matrix(names: Sequence[str], rows: Sequence[Mapping[str, float | None]], width: float = WIDE) -> Figure:
    """Test accuracy of every task (rows) after each task (columns), as a heat map with its numbers.

    Parameters
    ----------
    names : sequence of str
        Tasks in the order in which they were learned.
    rows : sequence of mapping
        One after each task: accuracy by task, None where it could not be measured.
    width : float
        Inches.
    """
    n = len(names)
    values = np.full((n, n), np.nan)
    for column, row in enumerate(rows):
        for place, name in enumerate(names[: column + 1]):
            value = row.get(name)
            values[place, column] = np.nan if value is None else value
    figure = new_figure(1.1 + 1.25 * ROW * n, width)
    axes = figure.add_subplot()
    known = values[np.isfinite(values)]
    low = float(known.min()) if known.size else 0.0
    low = max(0.0, min(low - 0.02, 0.9))
    shades = matplotlib.colors.LinearSegmentedColormap.from_list("shades", [PAPER, MIDDLE, DARK])
    image = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=shades, vmin=low, vmax=1.0, edgecolors=PAPER, linewidth=1.5
    )
    axes.invert_yaxis()
    size = SMALL if n <= 10 and width >= WIDE or n <= 5 else 6
    for place in range(n):
        for column in range(place, min(n, len(rows))):
            value = values[place, column]
            text = "–" if np.isnan(value) else f"{100 * value:.1f}"
            dark = not np.isnan(value) and (value - low) / (1.0 - low) > 0.4
            axes.text(column + 0.5, place + 0.5, text, ha="center", va="center", fontsize=size,
                      color=PAPER if dark else INK)  # fmt: skip
    most = 16 if width >= WIDE else 9
    axes.set_xticks(np.arange(n) + 0.5, [short(name, most) for name in names], rotation=45 if n > 4 else 0)
    axes.set_yticks(np.arange(n) + 0.5, [short(name, most) for name in names])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set(xlabel="after learning", ylabel="accuracy of")
    bar = figure.colorbar(image, ax=axes, format=percent_tick, shrink=0.9)
    bar.outline.set_visible(False)
    return figure


def owner_shares(owners: Mapping[str, Mapping[int, float]], names: Sequence[str], width: float = WIDE) -> Figure:
    """Share of the weights of each layer that every task owns, and the free share.

    Parameters
    ----------
    owners : mapping of str to mapping of int to float
        By layer and number of the owner; 0 is free.
    names : sequence of str
        Of the tasks, in the order of their numbers.
    """
    most = 26 if width >= WIDE else 12
    figure = new_figure(1.2 + ROW * len(owners) + 0.2 * (len(names) // 4), width)
    axes, y = row_axes(figure, labels(owners, most))
    left = np.zeros(len(owners))
    for number, name in [*enumerate(names, start=1), (0, "free")]:
        share = np.array([float(layer.get(number, 0.0)) for layer in owners.values()])
        fill, hatch = (PAPER, "") if number == 0 else FILLS[(number - 1) % len(FILLS)]
        bars = axes.barh(y, share, 0.7, left, color=fill, hatch=hatch, edgecolor=EDGE, linewidth=0.6,
                         label=short(name, most))  # fmt: skip
        for bar, layer, value in zip(bars, owners, share):
            tip(bar, f"{layer}: {100 * value:.1f} % {'free' if number == 0 else f'of {name}'}")
        left += share
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(percent_tick)
    axes.set(xlabel="share of the layer's weights", ylabel="layer")
    figure.legend(loc="outside upper left", ncols=4 if width >= WIDE else 2, handlelength=1.2, columnspacing=1.0)
    return figure


def ladder_curves(ladders: Mapping[str, Sequence[Mapping[str, float]]], width: float = WIDE) -> Figure:
    """Validation accuracy of each task against the released share of its weights."""
    figure = new_figure(2.9, width)
    axes = figure.add_subplot()
    ends: list[float] = []
    for number, (name, rungs) in enumerate(ladders.items()):
        if not rungs:
            continue
        line, colour = LINES[number % len(LINES)]
        x, y = [rung["released"] for rung in rungs], [rung["validation"] for rung in rungs]
        (drawn,) = axes.plot(x, y, line, color=colour, markersize=4, linewidth=1.2, label=short(name, 20))
        tip(drawn, *(f"{name}: {100 * a:.0f} % released, accuracy {100 * b:.1f} %" for a, b in zip(x, y)))
        ends += y
    if ends:
        share_axis(axes, ends)
        figure.legend(loc="outside upper left", ncols=4 if width >= WIDE else 2, handlelength=2.0, columnspacing=1.0)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(percent_tick)
    axes.set(xlabel="released share of the task's weights", ylabel="accuracy, held-out images")
    return figure


def save(draw: Draw, arguments: tuple[Any, ...], path: str | os.PathLike[str]) -> None:
    """Draw a figure into a PNG file."""
    with matplotlib.rc_context(STYLE):
        figure = draw(*arguments)
        FigureCanvasAgg(figure)
        figure.savefig(os.fspath(path), dpi=DPI, format="png", metadata={"Software": "decomp"})


def for_page(draw: Draw, arguments: tuple[Any, ...], key: str, alternative: str) -> list[tuple[str, str]]:
    """Draw a figure as the elements of a wide and of a narrow page."""
    with matplotlib.rc_context(STYLE):
        wide, slim = (
            inline_svg(draw(*arguments, width=width), f"{key}-{kind}", alternative)
            for kind, width in (("wide", WIDE), ("narrow", NARROW))
        )
    return [(wide, slim)]
