"""Reuse of frozen points: start over in a run directory, or start a new one from the frozen points of another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from decomp.errors import DecompError, FileError, UsageError

from ...data.formats.atomic import commit, commit_directory
from ...data.formats.digests import digest_file
from ..console.options import StageOptions
from ..console.reporter import Reporter
from .directory import RunDirectory
from .replacement import beside


def keeps_plan(run: RunDirectory, options: StageOptions) -> bool:
    """Whether :func:`clear` leaves plan.json in its place: it was edited, and the options are as they were."""
    before = run.config("decompose") or {}
    edited = run.plan_json.is_file() and before.get("plan_digest") != digest_file(run.plan_json)
    return edited and not options.differences(before.get("asked") or {})


def note_redo(run: RunDirectory, options: StageOptions) -> None:
    """Note in a decomposed run that a call for several runs is going to make its network anew; no run is left alone.

    The call may be stopped before it comes to this run: given again it then goes on, also without being asked to start
    over, which would delete the runs that it has finished.
    """
    if not run.run_json.is_file() or run.config("decompose") is None:
        return
    with run.lock():
        config = run.read_config()  # not by update_config, which notes today's versions of the libraries
        config["stages"]["decompose"]["redo"] = options.to_json()
        run.write_config(config)


def is_noted_for_redo(run: RunDirectory, options: StageOptions) -> bool:
    """Whether a call with these options was going to make the network of a run anew, see :func:`note_redo`."""
    noted = (run.config("decompose") or {}).get("redo")
    return noted is not None and not options.differences(noted)


def clear(run: RunDirectory, options: StageOptions) -> None:
    """Remove the results of decompose and finetune from a run; the frozen points and their curves stay.

    A plan that was edited by hand is kept: in its place for a call with the same options, otherwise under the name
    plan.previous.json.
    """
    before = run.config("decompose") or {}
    if run.plan_json.is_file() and before.get("plan_digest") != digest_file(run.plan_json):
        if options.differences(before.get("asked") or {}):
            os.replace(run.plan_json, run.plan_json.with_name("plan.previous.json"))
    else:
        run.plan_json.unlink(missing_ok=True)
    for path in (run.model_dir, run.layers_dir, run.blocks_dir, run.finetune_dir, beside(run.finetune_dir)):
        if path.exists():
            shutil.rmtree(path)
    run.report_json.unlink(missing_ok=True)
    for stage in ("decompose", "finetune", "evaluate"):
        run.update_config(stage, None)


@contextmanager
def opened(
    run: str | os.PathLike[str] | RunDirectory, source: str | os.PathLike[str] | RunDirectory | None, reporter: Reporter
) -> Iterator[RunDirectory]:
    """An existing run directory, or one with the frozen points of another.

    One that is new is removed again where an error ends the block before any work of its own: a call that was refused
    leaves nothing. Error curves and measured times that were made in it stay, which the reporter says.

    Parameters
    ----------
    run : path or RunDirectory
    source : path or RunDirectory, optional
    reporter : Reporter

    Raises
    ------
    FileError, UsageError
        As :func:`borrow` and :meth:`RunDirectory.open`.
    """
    if source is None:
        yield RunDirectory.open(run)
        return
    was_run, was_folder = RunDirectory(run).run_json.exists(), RunDirectory(run).path.is_dir()
    directory = borrow(run, source)
    try:
        yield directory
    except DecompError:
        if not was_run and _holds_only(directory, RunDirectory(source)):
            shutil.rmtree(directory.path, ignore_errors=True)
            if was_folder:
                directory.path.mkdir(exist_ok=True)
        elif not was_run:
            reporter.step(f"{directory}: what was computed so far is kept there, for a call with other options")
        raise


def _holds_only(run: RunDirectory, source: RunDirectory) -> bool:
    """Whether a run has nothing but what it has borrowed, and its log."""
    borrowed = [path.name for path in (source.frozen, source.curves, source.latency_json) if path.is_file()]
    known = {run.run_json.name, run.original_dir.name, run.log.name, *borrowed}
    return all(path.name in known or path.name.startswith(".") for path in run.path.iterdir())


def borrow(run: str | os.PathLike[str] | RunDirectory, source: str | os.PathLike[str] | RunDirectory) -> RunDirectory:
    """Make a run directory with the frozen points of another: hard links where the disk allows, copies elsewhere.

    Raises
    ------
    FileError, UsageError
        `source` is not frozen, or `run` was frozen differently.
    """
    source = RunDirectory.open(source)
    if source.config("freeze") is None or not source.frozen.is_file():
        raise FileError(source.path, "holds no frozen points", fix=f"run freeze --run {source.path} first")
    run = RunDirectory.create(run)
    if run.config("freeze") is not None:
        if run.config("freeze") != source.config("freeze"):
            raise UsageError(run.path, f"was frozen differently from {source.path}", fix="give another --run")
        return run
    with run.lock():
        for name in (source.frozen, source.curves, source.latency_json):
            if name.is_file():
                _link(name, run.path / name.name)
        with commit_directory(run.original_dir) as part:
            for name in sorted(source.original_dir.iterdir()):
                _link(name, part / name.name)
        run.update_config("freeze", source.config("freeze"))
    return run


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        with commit(target) as part:
            shutil.copyfile(source, part)
