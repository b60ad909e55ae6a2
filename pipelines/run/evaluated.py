"""Report of evaluate in a run, read back."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from ...data.formats.json_files import read_json
from ..console.reporter import Reporter
from .directory import RunDirectory

KIND = "decomp report"
FIX = "put a copy of it back, or delete it and run evaluate again, which measures all anew"


def read_evaluation(run: RunDirectory) -> Any:
    """Content of report.json, whose entries are not checked; None where nothing was evaluated.

    Raises
    ------
    FileError
        The file is damaged, edited, foreign, or of a newer version: its measurements are not lost by going on without
        them.
    """
    return read_json(run.report_json, kind=KIND, fix=FIX, sealed=None) if run.report_json.exists() else None


def keep_unusable(run: RunDirectory, reporter: Reporter) -> None:
    """Put a report.json without the entries of this version aside, as report.previous.json; none is left alone."""
    kept = run.report_json.with_name("report.previous.json")
    with suppress(FileNotFoundError):
        os.replace(run.report_json, kept)
        reporter.warn(f"{run.report_json} lacks entries that this version needs; it is kept as {kept}")
