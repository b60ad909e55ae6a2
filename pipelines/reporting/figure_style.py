"""Common style of the figures: sizes, colours, marks, labels of layers, texts shown on hover.

Marks, lines and bars differ in shape, style or lightness as well as in colour: a page can be read printed in grey,
and by people who do not tell red from green.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: Widths in inches: of a figure on a screen or on paper, and of one on a phone.
WIDE, NARROW = 7.6, 3.4
ROW, DPI = 0.26, 140  # inches, dots per inch
SMALL = 9  # points; on the page no text is smaller than 12 pixels
DARK, MIDDLE, LIGHT, ACCENT = "#16324f", "#5b83a8", "#cfdbe6", "#b4531f"
INK, FAINT, EDGE, RULE, GRID, PAPER = "#000000", "#999999", "#7d93a8", "#666666", "#e4e4e4", "#ffffff"
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.labelsize": 9.5, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "figure.constrained_layout.use": True, "axes.edgecolor": RULE, "svg.hashsalt": "decomp", "svg.fonttype": "none",
}  # fmt: skip
MARKS = {"original": ("o", DARK), "decomposed": ("s", MIDDLE), "pruned": ("D", MIDDLE), "fine-tuned": ("^", ACCENT)}
#: Prefix of the ``gid`` of an artist that carries texts to be shown on hover.
TIP = "tip:"
#: Between the texts of several marks; a line break would not survive in an attribute of XML.
BETWEEN = "\u241e"


def new_figure(height: float, width: float) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height))


def tip(artist: Artist, *texts: str) -> None:
    """Give an artist the text that is shown on hover, or one text for each of its marks."""
    artist.set_gid(TIP + BETWEEN.join(texts))


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


def last_part(path: object) -> str:
    """The last part of a path, shortened."""
    return short(str(path).replace("\\", "/").rstrip("/").split("/")[-1], 18)


def row_axes(figure: Figure, names: Sequence[str]) -> tuple[Axes, np.ndarray]:
    """Axes with a named row for each layer, the first one at the top, and the heights of the rows."""
    axes = figure.add_subplot()
    y = np.arange(len(names))[::-1]
    axes.set_yticks(y, names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(axis="y", visible=False)
    return axes, y


def share_limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis for shares, with a margin."""
    room = max(0.15 * (max(values) - min(values)), 0.01)
    return min(values) - room, max(values) + room


def share_axis(axes: Axes, values: Sequence[float]) -> None:
    """Format the vertical axis for shares in 0..1: percentages, a margin, no tick above 100 %."""
    low, high = share_limits(values)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_yticks([float(tick) for tick in axes.get_yticks() if low <= tick <= min(1 + 1e-9, high)])
    axes.yaxis.set_major_formatter(percent_tick)


def percent_tick(value: float, _: object = None) -> str:
    """Label of a tick for a share: as many digits as it needs."""
    return f"{100 * value:.6g} %"
