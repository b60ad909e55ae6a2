"""How anything reaches the disk: written beside, flushed, then renamed, so that a final name always means a whole file.

Every stage writes through `commit` (one file) or `commit_directory` (a folder that appears as a whole), and reads its
JSON through `read_json`, which refuses what is empty, cut short, foreign, too large, too deep or of a newer format.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

from decomp.errors import DecompError, FileError, NumericalError

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 64

# Where a killed process may leave work: `.NAME.part-TOKEN.SUFFIX` is unfinished, `.NAME.old-TOKEN` is the folder that
# was about to be replaced.
_PART = re.compile(r"^\..+\.part-[0-9a-f]{12}(\.[^.]*)?$")
_OLD = re.compile(r"^\.(?P<name>.+)\.old-[0-9a-f]{12}$")

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def commit(path):
    """Write one file so that it appears whole or not at all.

    Parameters
    ----------
    path : str or Path
        The final name. Its folder is made when it does not exist.

    Yields
    ------
    part : Path
        Where to write: a name beside `path` with the same suffix, not yet existing. When the block ends without an
        exception the part is flushed to the disk and renamed to `path` (replacing an older file); otherwise it is
        removed and `path` stays as it was.

    Raises
    ------
    FileError
        The disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    part = _beside(path, "part")
    with _undoing(path, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _usual_mode(part)
        _flush(part)
        os.replace(part, path)
        _flush_folder(path.parent)


@contextmanager
def commit_directory(path):
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
    path = Path(path)
    part = _beside(path, "part")
    with _undoing(path, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        yield part
        for folder, _, names in os.walk(part):
            for name in names:
                _usual_mode(Path(folder, name))
                _flush(Path(folder, name))
            _flush_folder(folder)
        _put_in_place(part, path)


def sweep(folder):
    """Clear what killed processes left in `folder`: unfinished parts go, a folder that was being replaced comes back.

    To be called only by the one who holds the run (see `RunDirectory.lock`): parts of a living process would go too.

    Returns
    -------
    names : list of str
        What was removed or put back.
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


def write_json(path, value, *, kind=None, format_version=None):
    """Write `value` as JSON, whole or not at all.

    Parameters
    ----------
    path : str or Path
    value : dict or list
        Numbers of numpy and torch, arrays and paths are written as their plain equals.
    kind, format_version : str and int, optional
        Written ahead of the rest as ``format`` and ``format_version``, for `read_json` to check.

    Raises
    ------
    NumericalError
        There is a NaN or an infinity in it, which JSON cannot hold.
    """
    if kind is not None:
        value = {"format": kind, "format_version": format_version or 1, **value}
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        raise NumericalError(Path(path), "every number must be finite", got=error) from None
    with commit(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_json(path, *, kind=None, format_version=1, fix=None, max_bytes=MAX_JSON_BYTES, max_depth=MAX_JSON_DEPTH):
    """Read a JSON file that may be broken, foreign, hostile or from a later version.

    Parameters
    ----------
    path : str or Path
    kind : str, optional
        What its ``format`` must say; None asks for no header.
    format_version : int
        The newest version that the caller understands.
    fix : str, optional
        What a person can do when the file is broken, such as which stage to run again.
    max_bytes, max_depth : int
        Larger or deeper files are refused before they can do harm.

    Raises
    ------
    FileError
        Names the file and what is wrong with it.
    """
    path = Path(path)
    text = _read_bounded(path, max_bytes, fix)
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        rule = "the file is cut short" if error.pos >= len(text.rstrip()) - 1 else "the file must be JSON"
        raise FileError(path, rule, got=f"{error.msg} at line {error.lineno}", fix=fix) from None
    except RecursionError:
        raise FileError(path, f"JSON must be at most {max_depth} levels deep", got="more", fix=fix) from None
    except ValueError as error:
        raise FileError(path, "the file must be plain JSON", got=error, fix=fix) from None
    _check_values(path, value, max_depth, fix)
    if kind is not None:
        _check_header(path, value, kind, format_version, fix)
    return value


def digest_file(path):
    """SHA-256 of a file's content, in hex."""
    path, digest = Path(path), hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise FileError(path, "the file must be readable", got=error.strerror or error) from None
    return digest.hexdigest()


def digest_json(value):
    """SHA-256 in hex of a value's one canonical JSON text (sorted keys, no spaces): equal values, equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def require_space(path, n_bytes):
    """Refuse to start what cannot end: the disk that `path` lies on must have `n_bytes` free.

    Raises
    ------
    FileError
        With what is needed and what is free.
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


def safe_name(name, max_length=100):
    """`name` as the name of a file in any folder: no separators, no ``..``, nothing hidden, not too long."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", str(name))
    return re.sub(r"\.{2,}", "_", name).strip(".")[:max_length] or "_"


def inside(folder, name):
    """The path of `name` in `folder`, refused when it would lie anywhere else.

    For names that come out of a file: absolute paths, ``..`` and links that lead outside are all refused.

    Raises
    ------
    FileError
    """
    folder = Path(folder)
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path == folder.resolve():
        raise FileError(folder, "a file named in it must lie inside it", got=name)
    return folder / name


def _beside(path, role):
    token = uuid.uuid4().hex[:12]
    if role == "old":
        return path.with_name(f".{path.name}.old-{token}")
    # The suffix stays last: some writers look at it, or add it when it is missing.
    return path.with_name(f".{path.stem}.part-{token}{path.suffix}")


def _put_in_place(part, path):
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


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _usual_mode(path):
    """Give a file the permissions that `open` would: some writers (safetensors) let its owner alone read it."""
    umask = os.umask(0o077)  # it can only be read by setting it; the stricter one, should another thread look
    os.umask(umask)
    with suppress(PermissionError):  # a hard link to another person's file keeps theirs
        os.chmod(path, 0o666 & ~umask)


def _flush(path):
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder):
    if os.name == "nt":  # folders cannot be opened there; the rename is journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _undoing(path, part):
    """Remove the part when the block fails, and say in one line what could not be written."""
    try:
        yield
    except BaseException as error:
        # Judged first: once the part is gone, a full disk is no longer full.
        translated = _write_error(path, part, error)
        with suppress(OSError):
            # Emptied first: a library whose write failed may hold the file open, and with it the room it takes.
            for file in part.rglob("*") if part.is_dir() else [part]:
                if file.is_file():
                    os.truncate(file, 0)
            _remove(part)
        if translated is None:
            raise
        raise translated from error


def _write_error(path, part, error):
    """The error a person should read when `error` came from writing `path`, or None when it came from elsewhere."""
    if isinstance(error, DecompError) or not isinstance(error, Exception):
        return None
    code = error.errno if isinstance(error, OSError) else None
    # Libraries wrap the system's error in their own (safetensors, HDF5, torch); their text and the disk are left.
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


def _free_bytes(path):
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return math.inf


def _plain(value):
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _read_bounded(path, max_bytes, fix):
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise FileError(path, "the file does not exist", fix=fix) from None
    except OSError as error:
        raise FileError(path, "the file must be readable", got=error.strerror, fix=fix) from None
    if not data.strip():
        raise FileError(path, "the file is empty", fix=fix)
    if len(data) > max_bytes:
        raise FileError(path, f"the file must be at most {max_bytes / 2**20:g} MiB", got="more", fix=fix)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileError(path, "the file must be JSON text", got="bytes that are not UTF-8", fix=fix) from None


def _without_duplicates(pairs):
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return value


def _refuse_constant(name):
    raise ValueError(f"the number {name}")


def _check_values(path, value, max_depth, fix):
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > max_depth + 1:
            raise FileError(path, f"JSON must be at most {max_depth} levels deep", got="more", fix=fix)
        below = []
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise FileError(path, "every number must be finite", got=item, fix=fix)
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = below


def _check_header(path, value, kind, format_version, fix):
    found = value.get("format") if isinstance(value, dict) else None
    if found != kind:
        got = "another file" if found is None else repr(found)
        raise FileError(path, f"the file must be a {kind!r} file", got=got, fix=fix)
    version = value.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FileError(path, "format_version must be a whole number from 1", got=version, fix=fix)
    if version > format_version:
        raise FileError(
            path,
            f"this version of decomp reads {kind!r} files up to format {format_version}",
            got=f"format {version}",
            fix="install the newer decomp that wrote it",
        )
