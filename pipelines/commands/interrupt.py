"""Ctrl-C: an end within a second or two, and one line about what is kept."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from decomp.errors import DecompError

from ..console.program import program
from ..console.words import counted
from ..distributed.launch import n_started
from ..run.directory import RunDirectory
from ..run.record import last_saved_epoch
from ..run.replacement import beside
from .going_on import command_of, going_on, value_of
from .processes import leave_no_copy, said_while_busy

CODE = 130
#: Seconds that a command has for an orderly end after Ctrl-C. Libraries notice it only when a computation returns;
#: every file of a run is written so that the process may be killed at any time.
GRACE = 1.0


@contextmanager
def quick_end(args: Sequence[str]) -> Iterator[None]:
    """End the process soon after Ctrl-C in the block, also where a library does not return.

    Parameters
    ----------
    args : sequence of str
        The command line, for the last line.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    ended, since = threading.Event(), time.time()

    def watch() -> None:
        while byte := os.read(read, 1):
            if byte[0] == signal.SIGINT and not ended.wait(GRACE):
                line = stopped_line(args, since) if n_started() == 1 else said_while_busy(args, since)
                if line is not None:
                    sys.stderr.write(f"\n{line}\n")
                    sys.stderr.flush()
                leave_no_copy()
                os._exit(CODE)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        os.close(write)
        watcher.join()
        os.close(read)


def stopped_line(args: Sequence[str], since: float = 0.0) -> str:
    """What is kept of a command that was stopped, and the command line that goes on.

    Parameters
    ----------
    args : sequence of str
        The command line without the program.
    since : float
        Seconds since the epoch at which the command began.
    """
    kept = _kept(command_of(args), args)
    again = shlex.join([*program().split(), *(going_on(args, since) if kept else args)])
    if kept:
        return f"stopped; kept: {kept}. To go on: {again}"
    return f"stopped; nothing of this command is kept. To begin again: {again}"


def _kept(command: str, args: Sequence[str]) -> str:
    if command == "train":
        return "the finished epochs" if _checkpoint(args).exists() else ""
    if command == "slim":
        begun = RunDirectory(f"{value_of(args, '--run')}-pass1").run_json.is_file()
        return "the finished passes, stages and epochs" if begun else ""
    if command == "tasks" or command == "demo" and "tasks" in args:
        return _kept_of_tasks(args)
    if command == "demo" and "masked" in args:
        return ""
    path = value_of(args, "--run") or ("runs/demo" if command == "demo" else None)
    if path is None:
        return ""
    run = RunDirectory(path)
    try:
        if not run.run_json.is_file():
            return ""
        if command == "demo":
            return "the finished stages"
        if command in ("freeze", "prune"):
            return "the frozen points" if run.config("freeze") and run.frozen.is_file() else ""
        if command == "decompose":
            return _kept_of_decompose(run, args)
        folders = (run.finetune_dir, beside(run.finetune_dir))
        if command == "finetune" and any((folder / "checkpoint.pt").is_file() for folder in folders):
            epoch = last_saved_epoch(run.log, "finetune")
            return f"everything up to {epoch}" if epoch else ""
    except (DecompError, OSError):
        pass
    return ""


def _kept_of_tasks(args: Sequence[str]) -> str:
    run = RunDirectory(value_of(args, "--run") or "runs/demo-tasks")
    learned = len(list(run.tasks_dir.glob("[0-9][0-9][0-9]_*.safetensors")))
    tasks = [counted(learned, "learned task")] if learned else []
    begun = ["the finished epochs of the one begun"] if run.tasks_work.is_dir() else []
    return " and ".join(tasks + begun)


def _kept_of_decompose(run: RunDirectory, args: Sequence[str]) -> str:
    if "," in (value_of(args, "--speedup") or "") or value_of(args, "--max-drop"):
        return "the survey and the finished layers of each run"
    layers = len(list(run.layers_dir.glob("*.safetensors"))) if run.layers_dir.is_dir() else 0
    if layers:
        blocks = len(list(run.blocks_dir.glob("*.safetensors"))) if run.blocks_dir.is_dir() else 0
        refined = f" and {counted(blocks, 'refined block')}" if blocks else ""
        return f"the survey, the plan{',' if blocks else ' and'} {counted(layers, 'finished layer')}{refined}"
    if run.plan_json.is_file():
        return "the survey and the plan"
    if run.curves.is_file():
        return "the survey"
    surveyed = len(list(run.curves_dir.glob("[0-9]*.npz")))
    return f"the error curves of {counted(surveyed, 'layer')}" if surveyed else ""


def _checkpoint(args: Sequence[str]) -> Path:
    if run := value_of(args, "--run"):
        own = RunDirectory(run).trained_weights.with_suffix(".checkpoint")
        return own if own.exists() else beside(own.parent) / own.name
    model = (value_of(args, "--model") or "").removeprefix("zoo:")
    return Path(value_of(args, "--out") or f"{model}.safetensors").with_suffix(".checkpoint")
