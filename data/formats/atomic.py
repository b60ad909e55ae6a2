"""Atomic writes: a part file beside the final name, flushed to the disk, then renamed.

Under its final name a file or folder is always complete. A killed process leaves part files, which :func:`sweep`
removes.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from decomp.errors import DecompError, FileError

# What a killed process may leave: `.NAME.part-TOKEN.SUFFIX` is unfinished, `.NAME.old-TOKEN` is the folder that was
# about to be replaced.
_PART = re.compile(r"^\..+\.part-[0-9a-f]{12}(\.[^.]*)?$")
_OLD = re.compile(r"^\.(?P<name>.+)\.old-[0-9a-f]{12}$")

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def commit(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write one file so that it appears whole or not at all.

    Parameters
    ----------
    path : str or Path
        The final name. Its folder is created when it does not exist.

    Yields
    ------
    part : Path
        The file to write: a name beside `path` with the same suffix, not yet existing. When the block ends without an
        exception the part is flushed to the disk and renamed to `path` (replacing an older file); otherwise it is
        removed and `path` stays as it was.

    Raises
    ------
    FileError
        The disk is full, or the folder cannot be written to.
    """
    with scratch(path) as part:
        yield part
        _usual_mode(part)
        _flush(part)
        os.replace(part, path)
        _flush_folder(Path(path).parent)


@contextmanager
def commit_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a folder of files so that it appears whole or not at all.

    An older folder of that name is moved aside, replaced and only then removed. A process killed between the two
    renames leaves the older one under its other name; `sweep` puts it back.

    Parameters
    ----------
    path : str or Path
        The final name of the folder.

    Yields
    ------
    part : Path
        An existing, empty folder beside `path` to write into.

    Raises
    ------
    FileError
        The disk is full, or the folder cannot be written to.
    """
    with scratch(path) as part:
        part.mkdir()
        yield part
        for folder, _, names in os.walk(part):
            for name in names:
                _usual_mode(Path(folder, name))
                _flush(Path(folder, name))
            _flush_folder(folder)
        _put_in_place(part, Path(path))


@contextmanager
def scratch(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path`; the file or folder under it is removed when the block ends, however it ends.

    If the process is killed, :func:`sweep` removes it later.

    Yields
    ------
    part : Path
        A name beside `path`, not yet existing.

    Raises
    ------
    FileError
        In place of the system's error, when the file that could not be written is this one.
    """
    path = Path(path)
    part = _beside(path, "part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
    except BaseException as error:
        # Before the part is removed: afterwards a full disk is no longer full.
        translated = _write_error(path, part, error)
        _remove_part(part)
        if translated is None:
            raise
        raise translated from error
    _remove_part(part)


def sweep(folder: str | os.PathLike[str]) -> list[str]:
    """Clean up after killed processes: remove unfinished parts, put back a folder that was being replaced.

    To be called only while the run is locked (see `RunDirectory.lock`): it would remove parts of a living process too.

    Returns
    -------
    names : list of str
        The names that were removed or put back.
    """
    swept = []
    for entry in sorted(Path(folder).iterdir()):
        old = _OLD.match(entry.name)
        if old and not entry.with_name(old["name"]).exists():
            os.replace(entry, entry.with_name(old["name"]))
        elif old or _PART.match(entry.name):
            _remove(entry)
        else:
            continue
        swept.append(entry.name)
    return swept


def require_space(path: str | os.PathLike[str], n_bytes: float) -> None:
    """Check before the work starts that the disk of `path` has `n_bytes` free.

    Raises
    ------
    FileError
        There is less; names the space needed and the space free.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise FileError(
            path,
            f"about {n_bytes / 2**20:,.0f} MiB of disk are needed",
            got=f"{free / 2**20:,.0f} MiB free",
            fix="make room or choose another folder",
        )


def _beside(path: Path, role: str) -> Path:
    token = uuid.uuid4().hex[:12]
    if role == "old":
        return path.with_name(f".{path.name}.old-{token}")
    # The suffix stays last: some writers look at it, or add it when it is missing.
    return path.with_name(f".{path.stem}.part-{token}{path.suffix}")


def _put_in_place(part: Path, path: Path) -> None:
    if path.exists():
        old = _beside(path, "old")
        os.replace(path, old)
        try:
            os.replace(part, path)
        except BaseException:
            os.replace(old, path)
            raise
        _flush_folder(path.parent)
        _remove(old)
    else:
        os.replace(part, path)
        _flush_folder(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _usual_mode(path: Path) -> None:
    """Give a file the permissions that `open` would: safetensors makes files that only their owner can read."""
    umask = os.umask(0o077)  # reading it means setting it; a strict one, in case another thread opens a file meanwhile
    os.umask(umask)
    with suppress(PermissionError):  # a hard link to another user's file keeps its permissions
        os.chmod(path, 0o666 & ~umask)


def _flush(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: str | os.PathLike[str]) -> None:
    if os.name == "nt":  # Windows cannot open folders; the rename is journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_part(part: Path) -> None:
    with suppress(OSError):
        # Truncated first: a library whose write failed may keep the file open, and with it the space on the disk.
        for file in part.rglob("*") if part.is_dir() else [part]:
            if file.is_file():
                os.truncate(file, 0)
        _remove(part)


def _write_error(path: Path, part: Path, error: BaseException) -> FileError | None:
    """A FileError about `path` when `error` came from writing it; None when it came from elsewhere."""
    if isinstance(error, DecompError) or not isinstance(error, Exception):
        return None
    code = error.errno if isinstance(error, OSError) else None
    # safetensors, HDF5 and torch wrap the system's error in their own: only its text and the free space remain.
    says_full = "No space left" in str(error) or "StorageFull" in str(error)
    failed_write = isinstance(error, RuntimeError) and (
        "inline_container" in str(error) or "write failed" in str(error)
    )
    if code in _FULL or says_full or (failed_write and _free_bytes(path) < 2**20):
        return FileError(path, "the disk is full, nothing was changed", fix="make room and run the same command again")
    if not isinstance(error, OSError):
        return None
    touched = [str(name) for name in (error.filename, error.filename2) if name is not None]
    ours = not touched or any(name.startswith((str(part), str(path.parent))) for name in touched)
    ours = ours or any(str(path.parent).startswith(name) for name in touched)
    if code in _FORBIDDEN and ours:
        return FileError(path, "the folder must be writable", got=error.strerror, fix="choose another folder")
    if isinstance(error, (NotADirectoryError, FileExistsError, IsADirectoryError)) and ours:
        return FileError(path, "another file is in the way", got=error.filename, fix="move it or choose another folder")
    if code == errno.EIO and ours:
        return FileError(path, "the disk reports an error", got=error.strerror)
    return None


def _free_bytes(path: Path) -> float:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return math.inf
