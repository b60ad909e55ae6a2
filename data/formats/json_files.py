"""JSON files that are not trusted: bounded, strict reading, with header, version and an optional digest of the content.

Every stage reads its JSON through `read_json`, which refuses a file that is empty, cut short, foreign, too large, too
deeply nested or of a newer format.
"""

import json
import math
from pathlib import Path

from decomp.errors import FileError, NumericalError

from .atomic import commit
from .digests import digest_json, plain_value

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 64
SEAL = "content_sha256"


def write_json(path, value, *, kind=None, format_version=None, seal=False):
    """Write `value` as JSON, whole or not at all.

    Parameters
    ----------
    path : str or Path
    value : dict or list
        Numbers of numpy and torch, arrays and paths are written as their plain equals.
    kind, format_version : str and int, optional
        Written ahead of the rest as ``format`` and ``format_version``, for `read_json` to check.
    seal : bool
        Add the digest of the content, for files that nobody is meant to edit.

    Raises
    ------
    NumericalError
        There is a NaN or an infinity in it, which JSON cannot hold.
    """
    if kind is not None:
        value = {"format": kind, "format_version": format_version or 1, **value}
    try:
        if seal:
            value = json.loads(json.dumps(value, allow_nan=False, default=plain_value))
            value[SEAL] = digest_json(value)
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=plain_value)
    except ValueError as error:
        raise NumericalError(Path(path), "every number must be finite", got=error) from None
    with commit(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_json(
    path, *, kind=None, format_version=1, fix=None, max_bytes=MAX_JSON_BYTES, max_depth=MAX_JSON_DEPTH, sealed=False
):
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
    sealed : bool
        It must hold the digest of its content, as `write_json` adds it; the digest is taken out.

    Raises
    ------
    FileError
        Names the file and what is wrong with it.
    """
    path = Path(path)
    value = parse_json(_read_bounded(path, max_bytes, fix), path, fix=fix, max_depth=max_depth)
    if kind is not None:
        _check_header(path, value, kind, format_version, fix)
    if sealed:
        found = value.pop(SEAL, None) if isinstance(value, dict) else None
        if found != digest_json(value):
            raise FileError(path, "the file must match the digest in it", got="a damaged or edited one", fix=fix)
    return value


def parse_json(text, path, *, fix=None, max_depth=MAX_JSON_DEPTH):
    """The value of a JSON text out of the file `path`, with the checks of `read_json` that need no header."""
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
    return value


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
