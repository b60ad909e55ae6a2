"""Reuse of frozen points: start over in a run directory, or start a new one from the frozen points of another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from decomp.errors import FileError, UsageError

from ...data.formats.atomic import commit, commit_directory
from ...data.formats.digests import digest_file
from ..console.options import StageOptions
from .directory import RunDirectory
from .replacement import beside


def keeps_plan(run: RunDirectory, options: StageOptions) -> bool:
    """Whether :func:`clear` leaves plan.json in its place: it was edited, and the options are as they were."""
    before = run.config("decompose") or {}
    edited = run.plan_json.is_file() and before.get("plan_digest") != digest_file(run.plan_json)
    return edited and not options.differences(before.get("asked") or {})


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
