"""Command that began the work of a run that is not finished: the one that continues it; others are refused."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ..console.option_words import option_words
from ..console.options import DecomposeOptions
from ..console.program import command_line, program
from .directory import RunDirectory
from .record import read_log


def begun_command(run: RunDirectory, stage: str) -> str | None:
    """The command that continues a stage of a run, without the program; None where none began it.

    The record of the stage says it; where that has none, it is the last command in the log that was not refused. The
    run is named as it is opened now, so that the command also holds in a copy of the run or from another folder.

    Parameters
    ----------
    run : RunDirectory
    stage : str
        Such as ``'decompose'``.
    """
    record = run.config(stage) or {}
    command = record.get("command") or _last_begun(run, stage)
    if command is None:
        return decompose_words(run, record["asked"]) if stage == "decompose" and "asked" in record else None
    # A repeated --redo would delete what is kept, such as the layers that are solved. A command that ends with the plan
    # stays so until there is one; then it would do nothing.
    dropped = ("--redo", *(("--plan-only",) if stage == "decompose" and run.plan_json.is_file() else ()))
    words = [word for word in shlex.split(command) if word not in dropped]
    if words[:1] != [stage] or of_several_runs(words):
        return shlex.join(words)
    return shlex.join(_in_run(words, run))


def compressing_command(run: RunDirectory) -> str:
    """The command, with the program, that makes the decomposed network of a run, or finishes the network begun."""
    for stage in ("decompose", "prune"):
        if run.config(stage) is not None and (command := begun_command(run, stage)):
            return f"{program()} {shlex.join(word for word in shlex.split(command) if word != '--plan-only')}"
    return command_line("decompose", run, "--speedup 4x")


def of_several_runs(words: list[str]) -> bool:
    """Whether a command of decompose makes networks in runs of their own beside the one that it names."""
    speedup = next((following for word, following in zip(words, words[1:]) if word == "--speedup"), "")
    several = [word for word in words if word.startswith("--speedup=")] + [speedup]
    return any("," in word for word in several) or any(word.split("=")[0] == "--max-drop" for word in words)


def _last_begun(run: RunDirectory, stage: str) -> str | None:
    begun: list[str | None] = []
    for event in read_log(run.log):
        if event.get("stage") != stage:
            continue
        if event.get("event") == "begin":
            begun.append(event.get("command"))
        elif event.get("event") == "stop" and event.get("refused") and begun:
            begun.pop()
    return begun[-1] if begun else None


def _in_run(words: list[str], run: RunDirectory) -> list[str]:
    """The words of a command with the path of the run in place of the one it was given with."""
    found, before = [], ""
    for word in words:
        if before == "--run":
            word = str(run)
        elif word.startswith("--run="):
            word = f"--run={run}"
        found.append(word)
        before = word
    return found


def decompose_words(run: RunDirectory, asked: Mapping[str, Any]) -> str:
    """The command, without the program, of a decomposition that was begun from Python.

    Parameters
    ----------
    run : RunDirectory
    asked : dict
        Of :meth:`decomp.pipelines.console.options.DecomposeOptions.to_json`. Of a plan that was given, not the file.
    """
    words = [f"--run {shlex.quote(str(run))}"]
    words += ["--plan FILE"] if asked.get("plan") else [f"--speedup {asked['speedup']:g}x"]
    of_plan = ("plan", "speedup", "steps", "allocation", "cost", "multiple") if asked.get("plan") else ()
    for name, value, _ in DecomposeOptions(speedup=2 if of_plan else asked["speedup"]).differences(asked):
        several = value if name in ("skip", "leave_out") else [value]  # each by an option of its own
        words += [
            option_words(name, shlex.quote(x) if isinstance(x, str) else x) for x in several if name not in of_plan
        ]
    return " ".join(["decompose", *words])
