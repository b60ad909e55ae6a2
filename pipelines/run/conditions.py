"""Conditions of a finished stage: its recorded options compared with those of a new call.

One rule for all stages: the same options mean that nothing is to be done, other options are refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from decomp.errors import FileError, UsageError

from ..console.options import FreezeOptions, Options, StageOptions
from ..console.program import program
from .directory import RunDirectory

#: Name of images that were given to `compress`: as decomp.data.given.NAME, without the imports of that module.
IN_MEMORY = "images in memory"


def recorded_options(run: RunDirectory, stage: str, kind: type[Options]) -> Options | None:
    """The options that a stage of a run was called with; None where it was not called yet.

    Parameters
    ----------
    run : RunDirectory
    stage : str
        Such as ``'freeze'``.
    kind : type
        Class of the stage's options.

    Raises
    ------
    FileError
        The record is not one of such options.
    """
    record = (run.config(stage) or {}).get("asked")
    if record is None:
        return None
    try:
        return kind.from_json(record)
    except (TypeError, AttributeError, UsageError) as error:
        fix = "start a new run directory with freeze"
        raise FileError(run.run_json, f"the options of {stage} cannot be read", got=str(error), fix=fix) from error


def freeze_options(run: RunDirectory) -> FreezeOptions:
    """The options of ``freeze`` in a run that is frozen.

    Raises
    ------
    UsageError
        It is not.
    """
    options = recorded_options(run, "freeze", FreezeOptions)
    if options is None:
        raise UsageError(run.path, "holds no frozen points", fix=f"run freeze --run {run.path} first")
    return options


def label_options(run: RunDirectory) -> str:
    """Options without which ``finetune`` is refused in a run: ``'--labels none'`` where labels cannot be used, or none.

    Labels are used where the source of the images has some, can be opened again, and the network's only output is
    class scores.
    """
    record = run.config("freeze") or {}
    labelled = (record.get("source") or {}).get("labelled", True)
    in_memory = str((record.get("asked") or {}).get("data")) == IN_MEMORY
    kinds = [entry.get("kind") for entry in record.get("outputs") or [{"kind": "scores"}]]
    return "" if labelled and not in_memory and kinds == ["scores"] else "--labels none"


def no_decomposed_network(run: RunDirectory) -> FileError:
    """The error for a run that is not decomposed, with the command that begins it, or shows how to continue it."""
    command = f"decompose --run {run.path} --speedup 4x"
    rule = "there is no decomposed network yet"
    if run.config("decompose") is not None:
        rule, command = "the decomposition is not finished", f"status --run {run.path}"
        return FileError(run.path, rule, fix=f"run `{program()} {command}` for the command that continues it")
    return FileError(run.path, rule, fix=f"run `{program()} {command}`")


def require_same_options(
    run: RunDirectory,
    done: str,
    options: StageOptions,
    record: Mapping[str, Any],
    fix: str,
    shown: Callable[[str, Any], Any] | None = None,
) -> None:
    """Refuse options that are not those of an earlier call, with the values of both.

    Parameters
    ----------
    run : RunDirectory
    done : str
        Past participle for the message, such as ``'decomposed'``.
    options : StageOptions
        Of the new call.
    record : mapping
        What run.json keeps of the earlier call under ``asked``.
    fix : str
        How to have both, or to replace the earlier result.
    shown : callable, optional
        ``shown(name, value)`` gives the value as the message shows it.

    Raises
    ------
    UsageError
    """
    differences = options.differences(record)
    if not differences:
        return
    show = shown or (lambda name, value: value)
    then = ", ".join(f"{name} = {show(name, before)}" for name, before, _ in differences)
    now = ", ".join(f"{name} = {show(name, value)}" for name, _, value in differences)
    raise UsageError(run.path, f"was {done} with {then}", got=now, fix=fix)
