"""Command line that goes on with a command that was stopped: the same, without an option that would begin it anew."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from decomp.errors import DecompError

from ..run.begun import of_several_runs
from ..run.directory import RunDirectory

REDO = "--redo"


def value_of(args: Sequence[str], option: str) -> str | None:
    """Value of an option on a command line; None where it is not given."""
    for word, following in zip(args, [*args[1:], ""]):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def command_of(args: Sequence[str]) -> str:
    """Name of the command on a command line."""
    return next((word for word in args if not word.startswith("-")), "")


def going_on(args: Sequence[str], since: float) -> list[str]:
    """The command line that continues a command which was stopped.

    Without ``--redo`` where this command has already replaced what was there: given again, it would delete what is
    kept. With it where the earlier result is still in its place.

    Parameters
    ----------
    args : sequence of str
        The command line without the program.
    since : float
        Seconds since the epoch at which the command began.
    """
    return [word for word in args if word != REDO] if REDO in args and _has_replaced(args, since) else list(args)


def _has_replaced(args: Sequence[str], since: float) -> bool:
    run, command = RunDirectory(value_of(args, "--run") or ""), command_of(args)
    try:
        if command == "decompose":
            return any(_decomposes(one, args, since) for one in (run, *(_members(run) if _of_several(args) else ())))
        if command in ("finetune", "train"):
            # A training that replaces a finished one lies beside that, and goes on with the option.
            folder = run.finetune_dir if command == "finetune" else run.trained_weights.parent
            return run.config(command) is None and any(_is_new(path, since) for path in folder.glob("*checkpoint*"))
        return command == "tasks" and _is_new(run.tasks_work / "asked.json", since)
    except (DecompError, OSError):
        return False


def _decomposes(run: RunDirectory, args: Sequence[str], since: float) -> bool:
    """Whether the decomposition in a run is of this command, and not of one before it."""
    record = (run.config("decompose") or {}) if run.run_json.is_file() else {}
    if record.get("command") != shlex.join(word for word in args if word != "--debug"):
        return False
    return "macs_after" not in record or _is_new(run.model_dir / "structure.json", since)


def _of_several(args: Sequence[str]) -> bool:
    return of_several_runs(list(args))


def _members(run: RunDirectory) -> Iterator[RunDirectory]:
    """The runs beside a run that have its name and a speed-up, such as ``runs/vgg-2x``."""
    return (RunDirectory(path) for path in sorted(run.path.parent.glob(f"{run.path.name}-*x")))


def _is_new(path: Path, since: float) -> bool:
    return path.is_file() and path.stat().st_mtime >= since
