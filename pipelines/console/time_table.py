"""Table of the time spent in a stage: seconds, processor seconds and share of its phases and of their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .text_table import text_table

#: Parts of a phase below this share of the whole are put together.
LEAST_SHARE = 0.01
REST = "rest"
HEADER = ("time spent", "seconds", "processor", "share")

Rows = Sequence[Mapping[str, Any]]


def time_rows(rows: Rows) -> list[tuple[str, ...]]:
    """The table as texts, the header first: each phase with its sum, and below it its parts.

    Parameters
    ----------
    rows : sequence of mapping
        As :meth:`decomp.time_spent.TimeSpent.rows` gives them.
    """
    whole = sum(row["seconds"] for row in rows)
    table: list[tuple[str, ...]] = [HEADER]
    for phase in dict.fromkeys(row["phase"] for row in rows):
        own = [row for row in rows if row["phase"] == phase]
        named = [row for row in own if row["part"] and row["seconds"] >= LEAST_SHARE * whole]
        rest = [row for row in own if row not in named]
        table.append(_cells(phase or "start", own, whole))
        table += [_cells(f"  {row['part']}", [row], whole) for row in named]
        if named and sum(row["seconds"] for row in rest) >= LEAST_SHARE * whole:
            table.append(_cells(f"  {REST}", rest, whole))
    return [*table, _cells("all", rows, whole)]


def _cells(name: str, rows: Rows, whole: float) -> tuple[str, ...]:
    seconds, processor = (sum(row[key] for row in rows) for key in ("seconds", "processor_seconds"))
    return name, f"{seconds:,.1f}", f"{processor:,.1f}", f"{100 * seconds / whole if whole else 0:.0f} %"


def time_lines(rows: Rows) -> list[str]:
    """The table as lines of text."""
    return text_table(time_rows(rows)).split("\n")
