"""Figures of the report, drawn from its tables with matplotlib: as PNG files, and as SVG in the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import layer_figures, network_figures, runtime_figure, sensitivity_figure, training_figures
from .figure_style import DPI, NARROW, STYLE, WIDE
from .svg import inline_svg
from .tables import Table

#: Most layers, or panels, in a figure that is drawn whole, and in each part of one that is not. A sheet of paper has
#: room for three parts with layers, or two with panels.
LAYERS_IN_A_FIGURE = (14, 10)
PANELS_IN_A_FIGURE = (12, 12)

#: The function that draws each table.
DRAWINGS: dict[str, Callable[[Table], Figure | None]] = {
    "accuracy": network_figures.accuracy, "latency": network_figures.latency, "runtimes": runtime_figure.runtimes,
    "classes": network_figures.classes,
    "layers": layer_figures.layer_costs, "errors": layer_figures.layer_errors, "curves": layer_figures.error_curves,
    "channels": layer_figures.kept_channels,
    "sensitivity": sensitivity_figure.sensitivity_curves, "finetuning": network_figures.finetuning,
    "training": training_figures.training, "filters": training_figures.filters,
}  # fmt: skip
#: Of the figures with a row or panel for each layer, the most in one figure.
PARTED = {
    "layers": LAYERS_IN_A_FIGURE, "errors": LAYERS_IN_A_FIGURE, "channels": LAYERS_IN_A_FIGURE,
    "curves": PANELS_IN_A_FIGURE, "sensitivity": PANELS_IN_A_FIGURE,
}  # fmt: skip


def draw(table: Table, path: str | os.PathLike[str]) -> bool:
    """Draw a table into a PNG file.

    Parameters
    ----------
    table : decomp.pipelines.reporting.tables.Table
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


def draw_for_page(table: Table, key: str, alternative: str) -> list[tuple[str, str]]:
    """Draw a table as SVG elements of a page.

    Parameters
    ----------
    table : decomp.pipelines.reporting.tables.Table
    key : str
        Of this figure in the page; all ids in its elements begin with it.
    alternative : str
        Text alternative of the figure.

    Returns
    -------
    list of (str, str)
        For each part of the figure, the element for a wide and the one for a narrow page; empty where there is nothing
        to draw.
    """
    drawn = []
    with matplotlib.rc_context(STYLE):
        for i, part in enumerate(parts(table)):
            pair = []
            for width in (WIDE, NARROW):
                options = {} if part is None else {"part": part}
                figure = DRAWINGS[table.name](table, width=width, **options)  # type: ignore[call-arg]
                if figure is None:
                    return []
                pair.append(inline_svg(figure, f"{key}-{i}-{'wide' if width == WIDE else 'narrow'}", alternative))
            drawn.append((pair[0], pair[1]))
    return drawn


def parts(table: Table) -> Iterator[slice | None]:
    """Parts of nearly equal numbers of layers; a single None for a figure that is drawn whole."""
    if table.name == "accuracy" and len(set(table.column("run"))) > 1:
        yield from (slice(0, 1), slice(1, 2))
        return
    most = PARTED.get(table.name)
    if most is None:
        yield None
        return
    n = len(layer_figures.names_of(table))
    whole, each = most
    count = 1 if n <= whole else -(-n // each)
    # Whole lines of four panels, except in the last part.
    size = -(-n // count) if table.name not in ("curves", "sensitivity") else -(-n // count // 4) * 4
    for start in range(0, max(n, 1), max(size, 1)):
        yield slice(start, start + max(size, 1))
