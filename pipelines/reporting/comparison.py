"""Networks of several runs as lines of text, for a terminal."""

from __future__ import annotations

from typing import Any

from ..console.text_table import text_table
from ..measure.closeness import percent
from ..measure.intervals import short_share
from .tables import Table
from .verdict import best_of


def comparison_lines(table: Table) -> list[str]:
    """A table of networks that were tested on the same images, and the best of them in words.

    Parameters
    ----------
    table : Table
        See :data:`decomp.pipelines.reporting.collect.NETWORK_COLUMNS`.
    """
    rows = table.dicts()
    name, quality = _quality(rows)
    cells = [["run", "network", name, "measured", "counted"]]
    for row, text in zip(rows, quality):
        speedups = (row["measured_speedup"], row["counted_speedup"])
        cells.append([row["run"], row["network"], text, *(f"{value:.2f}x" for value in speedups)])
    best = best_of(table)
    return [*text_table(cells, left=2).split("\n"), *([best] if best else [])]


def _quality(rows: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """Name and texts of a column: accuracy where there are labels, otherwise the closeness to the original."""
    for name, key in (("top-1", "top1"), ("same top class", "agreement")):
        values = [row[key] for row in rows]
        if any(value is not None for value in values):
            return name, ["-" if v is None else short_share(v, row["n_images"]) for v, row in zip(values, rows)]
    values = [row["output_difference"] for row in rows]
    return "outputs differ by", ["-" if value is None else percent(value) for value in values]
