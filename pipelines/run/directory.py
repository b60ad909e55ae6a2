"""Run directory: the files of one experiment, their paths, and the record in run.json."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decomp.errors import FileError, MissingError, UsageError

from ...data.formats.atomic import sweep
from ...data.formats.json_files import read_json, write_json
from ...data.formats.paths import safe_name
from .lock import RunLock, now
from .record import library_versions

KIND = "decomp run"
FORMAT_VERSION = 1


class RunDirectory:
    """Folder in which the stages of one experiment read and write.

    The constructor touches no file; `open` and `create` check that the folder is, or becomes, a run directory.

    Parameters
    ----------
    path : str, Path or RunDirectory

    Notes
    -----
    ::

        run.json            options and results of each stage; versions of the libraries it ran with
        trained/            weights of `train --run`, and the record of their training
        frozen.h5           calibration images, sampled points, responses of the original network there
        original/           the original network, batch normalisation folded
        plan.json           sizes of each layer; can be read and edited
        curves.npz          error curves that the plan is made from; curves/ has those of an unfinished survey
        latency.json        measured times that a plan by latency is made from
        layers/003_conv3_1.safetensors   one solved layer
        blocks/000.safetensors   refined weights of a block
        model/              the decomposed network
        prune.json          channels that stay in a pruned network; can be read and edited
        pruned/             the pruned network, also with its batch normalisations in with_batchnorm/
        sensitivity.csv, .png   closeness to the original with one layer pruned at a time
        finetune/           best/, last checkpoint, metrics
        report.json         the table of `evaluate`
        report.html         the page of `report`; its figures and their numbers in report/
        export/             networks for use without this package
        tasks/              in a run of `tasks`: base network, one file for each task, work/ of an unfinished one
        log.jsonl           every step with its time
    """

    def __init__(self, path: str | os.PathLike[str] | RunDirectory) -> None:
        if not isinstance(path, (str, os.PathLike, RunDirectory)):
            raise UsageError("--run", "must be the path of a run directory", got=repr(path))
        self.path: Path = Path(path.path if isinstance(path, RunDirectory) else path)
        self._lock: RunLock = path._lock if isinstance(path, RunDirectory) else RunLock(self.path)
        #: The network in memory that was frozen here, a torch.nn.Module, where this process has it.
        self.original: Any = path.original if isinstance(path, RunDirectory) else None

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def trained_weights(self) -> Path:
        return self.path / "trained" / "weights.safetensors"

    @property
    def frozen(self) -> Path:
        return self.path / "frozen.h5"

    @property
    def original_dir(self) -> Path:
        return self.path / "original"

    @property
    def plan_json(self) -> Path:
        return self.path / "plan.json"

    @property
    def curves(self) -> Path:
        return self.path / "curves.npz"

    @property
    def curves_dir(self) -> Path:
        return self.path / "curves"

    @property
    def latency_json(self) -> Path:
        return self.path / "latency.json"

    @property
    def layers_dir(self) -> Path:
        return self.path / "layers"

    @property
    def blocks_dir(self) -> Path:
        return self.path / "blocks"

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def prune_json(self) -> Path:
        return self.path / "prune.json"

    @property
    def pruned_dir(self) -> Path:
        return self.path / "pruned"

    @property
    def finetune_dir(self) -> Path:
        return self.path / "finetune"

    @property
    def report_json(self) -> Path:
        return self.path / "report.json"

    @property
    def export_dir(self) -> Path:
        return self.path / "export"

    @property
    def tasks_dir(self) -> Path:
        return self.path / "tasks"

    @property
    def tasks_base(self) -> Path:
        """The network that the tasks of a run began with."""
        return self.tasks_dir / "base"

    @property
    def tasks_work(self) -> Path:
        """Files of the task that is being learned."""
        return self.tasks_dir / "work"

    @property
    def figures_dir(self) -> Path:
        return self.path / "report"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    @property
    def scratch_dir(self) -> Path:
        """Base name of the temporary folder of a running stage, see :func:`decomp.data.formats.atomic.scratch`."""
        return self.path / "scratch"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def owner_json(self) -> Path:
        return self._lock.owner_json

    def layer_file(self, index: int, name: str) -> Path:
        """File of the `index`-th layer's solution; `name` may contain any characters and is made safe."""
        return self.layers_dir / f"{int(index):03d}_{safe_name(name)}.safetensors"

    def block_file(self, number: int) -> Path:
        """File of the refined weights of a block, by its number from 0 in execution order."""
        return self.blocks_dir / f"{number:03d}.safetensors"

    @classmethod
    def create(cls, path: str | os.PathLike[str] | RunDirectory, *, of_tasks: bool = False) -> RunDirectory:
        """Open the run directory at `path`, or make it.

        Parameters
        ----------
        path : str, Path or RunDirectory
        of_tasks : bool
            Whether tasks are learned in it; such a run holds nothing else.

        Raises
        ------
        FileError
            `path` is a file, or a folder that holds other things, or cannot be written to.
        """
        run = cls(path)
        if run.run_json.exists():
            return run._checked(of_tasks)
        run.check_free()
        run.write_config({"created": now(), "versions": {}, "stages": {}})
        return run

    def check_free(self) -> None:
        """Refuse a path at which no new run can be made.

        Raises
        ------
        FileError
            It is a file, or a folder that holds other things or cannot be written to.
        """
        fix = "give another --run"
        if self.path.exists() and not self.path.is_dir():
            raise FileError(self.path, "a run directory must be a folder", got="a file", fix=fix)
        if self.path.is_dir() and (found := _first_foreign(self.path)):
            got = f"a folder that holds {found!r}"
            raise FileError(self.path, "a new run directory must be empty", got=got, fix=fix)
        folder = self.path.absolute()
        while not folder.is_dir():
            folder = folder.parent
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".decomp-", dir=folder))
        except OSError as error:
            why = f"nothing can be written into {folder} ({error.strerror})"
            raise FileError(self.path, why, fix=fix) from error

    @classmethod
    def open(cls, path: str | os.PathLike[str] | RunDirectory, *, of_tasks: bool = False) -> RunDirectory:
        """Open the existing run directory at `path`.

        Parameters
        ----------
        path : str, Path or RunDirectory
        of_tasks : bool
            Whether it may be one in which tasks are learned.

        Raises
        ------
        FileError
            There is no such folder, it is no run directory, or its run.json is broken or of a newer version.
        """
        run = cls(path)
        hint = f"run `decomp freeze --model … --data … --run {run.path}` first"
        if not run.path.exists():
            raise MissingError(run.path, "there is no such run directory", fix=hint)
        if not run.run_json.is_file():
            if run.path.is_dir() and _first_foreign(run.path):  # where freeze would refuse to begin
                hint = "give another --run, or put a copy of it back"
            raise FileError(run.path, "a run directory must contain run.json", got="none", fix=hint)
        return run._checked(of_tasks)

    def _checked(self, of_tasks: bool) -> RunDirectory:
        """This run, whose run.json was read; refuses one in which tasks are learned where that is not asked for."""
        if "tasks" in self.read_config()["stages"] and not of_tasks:
            fix = f"give tasks list, verify, export or report --run {self.path}, or another --run"
            raise FileError(self.path, "is a run of tasks", fix=fix)
        return self

    def read_config(self) -> dict[str, Any]:
        """Content of run.json: ``created``, ``versions`` and ``stages``, with one record per stage.

        Raises
        ------
        FileError
        """
        fix = "put a copy of it back, or start a new run directory with `decomp freeze`"
        config = read_json(self.run_json, kind=KIND, format_version=FORMAT_VERSION, fix=fix, sealed=True)
        for key in ("versions", "stages"):
            part = config.get(key)
            if not isinstance(part, dict) or not all(isinstance(value, dict) for value in part.values()):
                raise FileError(self.run_json, f"{key!r} must hold one object per stage", got=part, fix=fix)
        for section in config["stages"].values():
            self.refuse_own_code(section.get("asked"))
        return config

    def refuse_own_code(self, options: object) -> None:
        """Refuse a model or images that are code in this folder: a run received from others must not execute any.

        Parameters
        ----------
        options : dict or anything
            Recorded options of a stage, as a file contains them.

        Raises
        ------
        FileError
        """
        if not isinstance(options, dict):
            return
        for key in ("model", "data"):
            place, _, _ = str(options.get(key)).rpartition(":")
            if place.endswith(".py") and Path(place).expanduser().resolve().is_relative_to(self.path.resolve()):
                raise FileError(
                    self.path, f"code in a run directory is not executed, and its {key} is such code", got=options[key],
                    fix="if you trust the file, keep it elsewhere and freeze again",
                )  # fmt: skip

    def write_config(self, config: dict[str, Any]) -> None:
        """Write all of run.json."""
        config = {key: value for key, value in config.items() if key not in ("format", "format_version")}
        write_json(self.run_json, config, kind=KIND, format_version=FORMAT_VERSION, seal=True)

    def config(self, stage: str) -> dict[str, Any] | None:
        """Record of a stage: its options (``asked``) and its results; None where it was not run."""
        record: dict[str, Any] | None = self.read_config()["stages"].get(stage)
        return record

    def update_config(self, stage: str, section: dict[str, Any] | None) -> None:
        """Write the record of one stage, and the versions of the libraries; the other stages' records stay.

        Parameters
        ----------
        stage : str
            Such as ``'freeze'``.
        section : dict or None
            None removes the record.
        """
        config = self.read_config()
        if section is None:
            config["stages"].pop(stage, None)
            config["versions"].pop(stage, None)
        else:
            config["stages"][stage] = section
            config["versions"][stage] = library_versions()
        self.write_config(config)

    def version_changes(self, stage: str) -> list[str]:
        """Libraries whose versions differ from those that `stage` ran with, as ``'torch 2.6.0, now 2.7.1'``."""
        then, now = self.read_config()["versions"].get(stage, {}), library_versions()
        return [f"{name} {then[name]}, now {now[name]}" for name in now if name in then and then[name] != now[name]]

    def owner(self) -> dict[str, Any]:
        """The process that held the lock last, see :meth:`decomp.pipelines.run.lock.RunLock.owner`."""
        return self._lock.owner()

    def current_owner(self) -> dict[str, Any]:
        """The process that holds the lock now; empty where none does."""
        return self._lock.current_owner()

    @contextmanager
    def lock(self, patience: float = 2.0) -> Iterator[RunDirectory]:
        """Keep every other process out of this run for the length of the block, and remove what killed ones left.

        Locking again through the same object, or one made from it, is allowed.

        Parameters
        ----------
        patience : float
            Seconds to wait for a lock whose owner is dead already.

        Raises
        ------
        FileError
            Another process holds it; its pid, host and command are named.
        """
        with self._lock.hold(patience, self._sweep):
            yield self

    def _sweep(self) -> None:
        self.frozen.with_name(self.frozen.name + ".part").unlink(missing_ok=True)  # the HDF5 writer's own
        folders = (
            self.trained_weights.parent, self.curves_dir, self.layers_dir, self.blocks_dir, self.finetune_dir,
            self.tasks_dir, self.tasks_work, *self.path.glob("*.new"),
        )  # fmt: skip
        for folder in (self.path, *folders):
            if folder.is_dir():
                sweep(folder)


def _first_foreign(folder: Path) -> str | None:
    # Hidden files are ours (left by a killed `create` or a lock) or the system's.
    names = (entry.name for entry in sorted(folder.iterdir()))
    return next((name for name in names if not name.startswith(".")), None)
