"""Lock of a run directory: one process at a time, with the owner's pid, host and command for others to read."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock

from decomp.errors import FileError

from ...data.formats.json_files import read_json, write_json

_OWNER = {"pid": int, "host": str, "since": str, "command": str}


class RunLock:
    """The lock of one run directory.

    The operating system holds it, so it ends with its process, however that ends.

    Parameters
    ----------
    folder : Path
        The run directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held = False

    @property
    def file(self) -> Path:
        """The file that the operating system locks."""
        return self._folder / ".lock"

    @property
    def owner_json(self) -> Path:
        """Owner of the lock, as JSON."""
        return self._folder / ".owner.json"

    @contextmanager
    def hold(self, patience: float, sweep: Callable[[], None]) -> Iterator[None]:
        """Hold the lock for the length of the block; inside another such block of the same object it is held already.

        Parameters
        ----------
        patience : float
            Seconds to wait for a lock whose owner is dead already (its last child processes may still be running).
        sweep : callable
            Called once the lock is held, to remove what killed processes left.

        Raises
        ------
        FileError
            Another process holds it; its pid, host and command are named.
        """
        if self._held:
            yield
            return
        lock = filelock.FileLock(self.file, thread_local=False)
        self._acquire(lock, patience)
        self._held = True
        try:
            self._write_owner()
            sweep()
            yield
        finally:
            self._held = False
            self.owner_json.unlink(missing_ok=True)
            lock.release()

    def owner(self) -> dict[str, Any]:
        """The last owner: ``pid``, ``host``, ``command``, ``since``; empty when unknown."""
        try:
            owner = read_json(self.owner_json, max_bytes=2**16)
        except FileError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def current_owner(self) -> dict[str, Any]:
        """As `owner` where that process still holds the lock; otherwise empty. Takes no lock and changes nothing."""
        owner = self.owner()
        complete = all(isinstance(owner.get(key), kind) for key, kind in _OWNER.items())
        return owner if complete and _alive(owner) else {}

    def _acquire(self, lock: filelock.BaseFileLock, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                lock.acquire(timeout=0)
                return
            except filelock.Timeout:
                owner = self.owner()
                if _alive(owner) or time.monotonic() > deadline:
                    raise FileError(
                        self._folder,
                        "one process at a time may work on a run",
                        got=f"a second one while {_describe(owner)}",
                        fix="wait for it to end or give another --run",
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                raise FileError(
                    self._folder,
                    "the folder must be writable",
                    got=error.strerror or error,
                    fix="choose another folder",
                ) from None

    def _write_owner(self) -> None:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:1000]
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": now()}
        write_json(self.owner_json, owner)


def now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _alive(owner: dict[str, Any]) -> bool:
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return bool(owner)  # another machine's, or unreadable: believe the lock
    if os.name == "nt":
        return True  # a signal would end the process there; the lock itself is the answer
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "another has it"
    text = "pid {pid} on {host} has it since {since} ({command})"
    return text.format(**{key: owner.get(key, "?") for key in ("pid", "host", "since", "command")})
