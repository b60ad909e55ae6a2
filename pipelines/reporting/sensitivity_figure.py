"""Figure of sensitivity: a small panel for each layer, likeness to the original against the share of channels gone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from .figure_style import DARK, SMALL, WIDE, labels, new_figure, percent_tick, tip
from .tables import Table

ALL = slice(None)


def sensitivity_curves(table: Table, width: float = WIDE, part: slice = ALL) -> Figure:
    """A panel for each layer: share of images with the original's first class, or the change of the outputs.

    Parameters
    ----------
    table : Table
        With columns layer, ratio, agreement, output_difference.
    width : float
        Of the figure in inches.
    part : slice
        Of the layers.
    """
    everything = list(dict.fromkeys(table.column("layer")))
    names = everything[part]
    rows = table.dicts()
    scores = rows[0]["agreement"] is not None
    column = "agreement" if scores else "output_difference"
    columns = min(len(everything), (3 if len(everything) in (5, 6, 9) else 4) if width >= WIDE else 2)
    lines = -(-len(names) // columns)
    figure = new_figure(1.0 + 1.5 * lines, width)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for at, panel in enumerate(panels.flat[len(names) :], len(names) % columns):
        panel.set_visible(False)
        panels[-2, at].tick_params(labelbottom=True)  # now the lowest of its column
    for name, title, panel in zip(names, labels(everything, 20)[part], panels.flat):
        _curve(panel, [row for row in rows if row["layer"] == name], column, 1.0 if scores else 0.0)
        panel.set_title(title, pad=2, fontsize=SMALL)
    most = max(row[column] for row in rows)
    panels[0, 0].set_ylim(0, 1.05 if scores else 1.05 * max(most, 1e-9))
    panels[0, 0].set_xlim(0, 1)
    panels[0, 0].set_xticks([0, 0.5, 1], ["0", "½", "1"])
    panels[0, 0].yaxis.set_major_formatter(percent_tick)
    figure.supxlabel("share of the layer's channels that are removed", fontsize=9.5)
    figure.supylabel("same first class" if scores else "change of the outputs", fontsize=9.5)
    return figure


def _curve(panel: Any, rows: list[dict[str, Any]], column: str, whole: float) -> None:
    points = [(0.0, whole), *((row["ratio"], row[column]) for row in rows)]
    (drawn,) = panel.plot(*zip(*points), "o-", color=DARK, markersize=3.5, linewidth=1.3, clip_on=False)
    words = [f"{rows[0]['layer']}, all channels"]
    words += [f"{row['layer']}, {row['kept']} of {row['channels']} channels: {row[column]:.1%}" for row in rows]
    tip(drawn, *words)
