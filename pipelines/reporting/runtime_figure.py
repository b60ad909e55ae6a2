"""Figure of measured time: bars of the networks of a run in each runtime and memory layout."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .figure_style import DARK, INK, LIGHT, MIDDLE, PAPER, ROW, SMALL, WIDE, new_figure, tip
from .tables import Table

#: Colours of the bars, light to dark in the order of the networks, so that they differ in grey too.
BARS = (LIGHT, MIDDLE, DARK)


def shown_rows(table: Table) -> list[dict[str, Any]]:
    """The rows of the figure: those that were measured under comparable conditions, of the networks as they are."""
    return [row for row in table.dicts() if row["shown"]]


def place_words(row: dict[str, Any]) -> str:
    """Runtime of a row, with its memory layout where that is not the usual one."""
    return str(row["runtime"]) + (", channels last" if row["layout"] == "channels-last" else "")


def runtimes(table: Table, width: float = WIDE) -> Figure | None:
    """Median milliseconds of a batch with the quartiles of the rounds, a group of bars for each runtime and layout.

    None where fewer than two were measured.

    Parameters
    ----------
    table : Table
        With columns runtime, layout, network, latency_ms, latency_low_ms, latency_high_ms, speedup, reason, shown.
    width : float
        Of the figure in inches.
    """
    rows = shown_rows(table)
    groups = list(dict.fromkeys(map(place_words, rows)))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    if len(groups) < 2:
        return None
    figure = new_figure(1.0 + ROW * len(groups) * (len(networks) + 0.8), width)
    axes = figure.add_subplot()
    height = 1 / (len(networks) + 0.8)
    most = max(row["latency_high_ms"] or 0.0 for row in rows)
    for row in rows:
        at = -groups.index(place_words(row)) - height * (networks.index(row["network"]) - (len(networks) - 1) / 2)
        _bar(axes, row, at, height, BARS[networks.index(row["network"]) % len(BARS)])
    axes.set_yticks(-np.arange(len(groups)), [name.replace(", ", ",\n") for name in groups])
    axes.set_ylim(-len(groups) + 0.5, 0.5)
    axes.set_xlim(0, (1.3 if width >= WIDE else 1.6) * most)
    c = rows[0]
    axes.set_xlabel(f"milliseconds for a batch of {c['batch_size']}")
    axes.grid(axis="y", visible=False)
    handles = [Patch(facecolor=BARS[i % len(BARS)], edgecolor=DARK, label=name) for i, name in enumerate(networks)]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def _bar(axes: Any, row: dict[str, Any], at: float, height: float, colour: str) -> None:
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": SMALL}
    if row["latency_ms"] is None:
        axes.annotate(f"{row['network']}: not measured", (0, at), (5, 0), **beside)
        return
    time, low, high = row["latency_ms"], row["latency_low_ms"], row["latency_high_ms"]
    (drawn,) = axes.barh(at, time, height, color=colour, edgecolor=DARK, linewidth=0.8)
    axes.errorbar([time], [at], xerr=[[time - low], [high - time]], fmt="none", ecolor=INK, elinewidth=1, capsize=3)
    faster = "" if row["network"] == "original" or row["speedup"] is None else f", {row['speedup']:.2f}x"
    paper = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
    axes.annotate(f"{time:.3g} ms{faster}", (high, at), (6, 0), **beside, bbox=paper)
    tip(drawn, f"{row['network']} in {place_words(row)}: {time:,.3g} ms ({low:,.3g} to {high:,.3g}){faster}")
