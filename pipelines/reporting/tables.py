"""Table of numbers for a figure of the report, and the reason for one that is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .summary import Summary

#: Way out for a damaged file that the networks of a run do without.
WITHOUT = "put a copy of it back, or delete it: the report is then made without this figure"


@dataclass(frozen=True)
class Table:
    """The numbers of one figure.

    Attributes
    ----------
    name : str
        Of its files, ``name.csv`` and ``name.png``.
    header : tuple of str
        Names of the columns, with units.
    rows : list of tuple
        None for a missing value.
    notes : list of str
        Lines below the figure.
    summary : decomp.pipelines.reporting.summary.Summary, optional
        Source of the rows of the table of layers.
    tested : str
        The images on which the networks of the table of networks were tested.
    digest : str or None
        Of these images; None where it is not known.
    """

    name: str
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    notes: list[str] = field(default_factory=list)
    summary: Summary | None = None
    tested: str = ""
    digest: str | None = None

    def column(self, name: str) -> list[Any]:
        """The values of one column."""
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def dicts(self) -> list[dict[str, Any]]:
        """Every row as a dict of its columns."""
        return [dict(zip(self.header, row)) for row in self.rows]


@dataclass(frozen=True)
class Missing:
    """A figure without data: the reason, and the command that produces the data."""

    name: str
    why: str
    command: str
