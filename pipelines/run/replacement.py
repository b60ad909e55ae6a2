"""Replacement of a result of a run: the new one is made in a folder beside the earlier one, which stays until then."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .directory import RunDirectory


def beside(folder: Path) -> Path:
    """The folder in which the successor of another folder is made."""
    return folder.with_name(f"{folder.name}.new")


def end_exchange(run: RunDirectory, stage: str, folder: Path) -> None:
    """Put a whole successor in the place of a folder whose record is gone; nothing where there is none.

    At the begin of a stage this ends what a process that was stopped in between has left.
    """
    if run.config(stage) is None and beside(folder).is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside(folder), folder)


def exchange(run: RunDirectory, stage: str, folder: Path) -> None:
    """Remove the record of a stage and put the whole successor of its folder in its place.

    Parameters
    ----------
    run : RunDirectory
        Locked.
    stage : str
        Name of its record in run.json, which is then to be written anew.
    folder : Path
        Of the earlier result; nothing is done where it has no successor.
    """
    if beside(folder).is_dir():
        run.update_config(stage, None)
        end_exchange(run, stage, folder)
