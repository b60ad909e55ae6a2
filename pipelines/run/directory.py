"""The run directory: the whole state of one experiment, and the one place that knows what lies where in it."""

import os
import socket
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import filelock

from decomp.errors import FileError

from ...data.formats.atomic import sweep
from ...data.formats.json_files import read_json, write_json
from ...data.formats.paths import safe_name
from .record import library_versions

KIND = "decomp run"
FORMAT_VERSION = 1
_OWNER = {"pid": int, "host": str, "since": str, "command": str}


class RunDirectory:
    """Where each stage of one experiment reads and writes.

    Making the object touches no file; `open` and `create` check that the folder is, or becomes, a run directory.

    Parameters
    ----------
    path : str, Path or RunDirectory

    Notes
    -----
    ::

        run.json            configuration as used, a section per stage; versions of the libraries, per stage
        frozen.h5           calibration images, points and responses of the original network
        original/           the original network, batch normalisation folded
        plan.json           what each layer gets; a person can read and edit it
        curves.npz          error curves behind the plan
        latency.json        measured times behind a plan by latency
        layers/003_conv3_1.safetensors
        model/              the decomposed network
        finetune/           best/, last checkpoint, metrics
        report.json         the table of `evaluate`
        report.html         what `report` makes of all this; its figures and their numbers in report/
        export/             networks for use without this package
        log.jsonl           every step with its time
    """

    def __init__(self, path):
        self.path = Path(path.path if isinstance(path, RunDirectory) else path)
        self._held = path._held if isinstance(path, RunDirectory) else []

    def __repr__(self):
        return f"RunDirectory({str(self.path)!r})"

    def __str__(self):
        return str(self.path)

    def __fspath__(self):
        return str(self.path)

    @property
    def run_json(self):
        return self.path / "run.json"

    @property
    def frozen(self):
        return self.path / "frozen.h5"

    @property
    def original_dir(self):
        return self.path / "original"

    @property
    def plan_json(self):
        return self.path / "plan.json"

    @property
    def curves(self):
        return self.path / "curves.npz"

    @property
    def latency_json(self):
        return self.path / "latency.json"

    @property
    def layers_dir(self):
        return self.path / "layers"

    @property
    def model_dir(self):
        return self.path / "model"

    @property
    def finetune_dir(self):
        return self.path / "finetune"

    @property
    def report_json(self):
        return self.path / "report.json"

    @property
    def export_dir(self):
        return self.path / "export"

    @property
    def figures_dir(self):
        return self.path / "report"

    @property
    def report_html(self):
        return self.path / "report.html"

    @property
    def scratch_dir(self):
        """Beside it, under a name that `scratch` gives, lies what a stage needs only while it runs."""
        return self.path / "scratch"

    @property
    def log(self):
        return self.path / "log.jsonl"

    @property
    def lock_file(self):
        return self.path / ".lock"

    @property
    def owner_json(self):
        return self.path / ".owner.json"

    def layer_file(self, index, name):
        """Where the committed result of the `index`-th layer lies; `name` is made safe, whatever it holds."""
        return self.layers_dir / f"{int(index):03d}_{safe_name(name)}.safetensors"

    @classmethod
    def create(cls, path):
        """The run directory at `path`, made when it is not there.

        Raises
        ------
        FileError
            `path` is a file, or a folder that holds other things, or cannot be written to.
        """
        run = cls(path)
        if run.run_json.exists():
            run.read_config()
            return run
        run.check_free()
        run.write_config({"created": _now(), "versions": {}, "stages": {}})
        return run

    def check_free(self):
        """Refuse a place where no new run can be made.

        Raises
        ------
        FileError
            It is a file, or a folder that holds other things.
        """
        fix = "give another --run"
        if self.path.exists() and not self.path.is_dir():
            raise FileError(self.path, "a run directory must be a folder", got="a file", fix=fix)
        if self.path.is_dir() and (found := _first_foreign(self.path)):
            got = f"a folder that holds {found!r}"
            raise FileError(self.path, "a new run directory must be empty", got=got, fix=fix)

    @classmethod
    def open(cls, path):
        """The run directory at `path`, which must be there.

        Raises
        ------
        FileError
            There is no such folder, it is no run directory, or its run.json is broken or of a newer version.
        """
        run = cls(path)
        hint = f"run `decomp freeze --model … --data … --run {run.path}` first"
        if not run.path.exists():
            raise FileError(run.path, "there is no such run directory", fix=hint)
        if not run.run_json.is_file():
            raise FileError(run.path, "a run directory must hold run.json", got="none", fix=hint)
        run.read_config()
        return run

    def read_config(self):
        """All of run.json as a dict: ``created``, ``versions`` and ``stages``, each stage's configuration by name.

        Raises
        ------
        FileError
        """
        fix = "start a new run directory with `decomp freeze`"
        config = read_json(self.run_json, kind=KIND, format_version=FORMAT_VERSION, fix=fix, sealed=True)
        for key in ("versions", "stages"):
            part = config.get(key)
            if not isinstance(part, dict) or not all(isinstance(value, dict) for value in part.values()):
                raise FileError(self.run_json, f"{key!r} must hold one object per stage", got=part, fix=fix)
        for section in config["stages"].values():
            self.refuse_own_code(section.get("asked"))
        return config

    def refuse_own_code(self, asked):
        """Refuse a model or images that are code lying in this folder: a run that was sent along must not run any.

        Parameters
        ----------
        asked : dict or anything
            What a stage was asked for, as a file says.

        Raises
        ------
        FileError
        """
        for key in ("model", "data") if isinstance(asked, dict) else ():
            place, _, _ = str(asked.get(key)).rpartition(":")
            if place.endswith(".py") and Path(place).expanduser().resolve().is_relative_to(self.path.resolve()):
                raise FileError(
                    self.path, f"code in a run directory is not run, and its {key} is such", got=asked[key],
                    fix="if you trust the file, keep it elsewhere and freeze again",
                )  # fmt: skip

    def write_config(self, config):
        """Write all of run.json."""
        config = {key: value for key, value in config.items() if key not in ("format", "format_version")}
        write_json(self.run_json, config, kind=KIND, format_version=FORMAT_VERSION, seal=True)

    def config(self, stage):
        """The configuration `stage` was run with, or None when it was not."""
        return self.read_config()["stages"].get(stage)

    def update_config(self, stage, section):
        """Put down what `stage` was run with, and with which versions of the libraries; the other stages' stay.

        Parameters
        ----------
        stage : str
            Such as ``'freeze'``.
        section : dict or None
            None forgets the stage.
        """
        config = self.read_config()
        if section is None:
            config["stages"].pop(stage, None)
            config["versions"].pop(stage, None)
        else:
            config["stages"][stage] = section
            config["versions"][stage] = library_versions()
        self.write_config(config)

    def version_changes(self, stage):
        """Libraries that are not the ones `stage` ran with, as ``'torch 2.6.0, now 2.7.1'``."""
        then, now = self.read_config()["versions"].get(stage, {}), library_versions()
        return [f"{name} {then[name]}, now {now[name]}" for name in now if name in then and then[name] != now[name]]

    def owner(self):
        """Who wrote the lock last: a dict with ``pid``, ``host``, ``command``, ``since``; empty when unknown."""
        try:
            owner = read_json(self.owner_json, max_bytes=2**16)
        except FileError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def current_owner(self):
        """As `owner`, when that process still works on the run; else empty. Takes no lock and changes nothing."""
        owner = self.owner()
        complete = all(isinstance(owner.get(key), kind) for key, kind in _OWNER.items())
        return owner if complete and _alive(owner) else {}

    @contextmanager
    def lock(self, patience=2.0):
        """Keep every other process out of this run for the length of the block, and clear what killed ones left.

        The operating system holds the lock, so it ends with its process, however that ends. Taking it again through
        the same object, or one made from it, is allowed.

        Parameters
        ----------
        patience : float
            Seconds to wait for a lock whose owner is already dead (its last helpers may still be going).

        Raises
        ------
        FileError
            Another process has it; its pid, host and command are named.
        """
        if self._held:
            yield self
            return
        lock = filelock.FileLock(self.lock_file, thread_local=False)
        self._acquire(lock, patience)
        self._held.append(lock)
        try:
            self._write_owner()
            self._sweep()
            yield self
        finally:
            self._held.pop()
            self.owner_json.unlink(missing_ok=True)
            lock.release()

    def _acquire(self, lock, patience):
        deadline = time.monotonic() + patience
        while True:
            try:
                return lock.acquire(timeout=0)
            except filelock.Timeout:
                owner = self.owner()
                if _alive(owner) or time.monotonic() > deadline:
                    raise FileError(
                        self.path,
                        "one process at a time may work on a run",
                        got=f"a second one while {_describe(owner)}",
                        fix="wait for it to end or give another --run",
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                raise FileError(
                    self.path, "the folder must be writable", got=error.strerror or error, fix="choose another folder"
                ) from None

    def _write_owner(self):
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:1000]
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": _now()}
        write_json(self.owner_json, owner)

    def _sweep(self):
        self.frozen.with_name(self.frozen.name + ".part").unlink(missing_ok=True)  # the HDF5 writer's own
        for folder in (self.path, self.layers_dir, self.finetune_dir):
            if folder.is_dir():
                sweep(folder)


def _first_foreign(folder):
    # What a killed `create` or a lock leaves behind is ours, and so is a system's own litter.
    names = (entry.name for entry in sorted(folder.iterdir()))
    return next((name for name in names if not name.startswith(".")), None)


def _alive(owner):
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return bool(owner)  # another machine's, or unreadable: believe the lock
    if os.name == "nt":
        return True  # asking is not harmless there; the lock itself is the answer
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _describe(owner):
    if not owner:
        return "another has it"
    text = "pid {pid} on {host} has it since {since} ({command})"
    return text.format(**{key: owner.get(key, "?") for key in ("pid", "host", "since", "command")})


def _now():
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
