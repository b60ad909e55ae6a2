"""Outputs of the network of a run, as freeze described and measured them."""

from __future__ import annotations

from typing import Any

from decomp.errors import FileError
from decomp.execution.output_change import Outputs

from ...data.formats.frozen_file import FrozenFile
from .directory import RunDirectory

_FIX = "run freeze again into another --run"


def frozen_outputs(frozen: FrozenFile) -> Outputs:
    """The outputs of the network that was frozen, from the frozen file itself.

    Raises
    ------
    FileError
        The file does not describe them.
    """
    return _read(frozen.meta.get("outputs"), "the frozen points")


def run_outputs(run: RunDirectory) -> Outputs:
    """The same from run.json, where the frozen file is not needed.

    Raises
    ------
    FileError
        The run does not describe them.
    """
    return _read((run.config("freeze") or {}).get("outputs"), run.run_json)


def _read(record: Any, thing: object) -> Outputs:
    if record is None:
        raise FileError(thing, "must describe the network's outputs", got="a file of an earlier version", fix=_FIX)
    try:
        return Outputs.from_json(record)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise FileError(thing, f"the description of the outputs is broken ({reason})", fix=_FIX) from error
