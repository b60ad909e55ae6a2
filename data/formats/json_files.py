"""JSON files that are not trusted: bounded, strict reading, with header, version and an optional digest of the content.

Every stage reads its JSON through `read_json`, which refuses a file that is empty, cut short, foreign, too large, too
deeply nested or of a newer format.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from decomp.errors import FileError, NumericalError

from .atomic import commit
from .digests import digest_json, plain_value

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 64
SEAL = "content_sha256"


def write_json(
    path: str | os.PathLike[str], value: Any, *, kind: str | None = None, format_version: int | None = None,
    seal: bool = False,
) -> None:  # fmt: skip
    """Write `value` as JSON, whole or not at all.

    Parameters
    ----------
    path : str or Path
    value : dict or list
        Numbers and arrays of numpy and torch are written as numbers and lists, paths as strings.
    kind, format_version : str and int, optional
        Written ahead of the rest as ``format`` and ``format_version``, for `read_json` to check.
    seal : bool
        Add the digest of the content, for files that are not meant to be edited.

    Raises
    ------
    NumericalError
        A number is NaN or infinite, which JSON cannot hold.
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
    path: str | os.PathLike[str], *, kind: str | None = None, format_version: int = 1, fix: str | None = None,
    max_bytes: int = MAX_JSON_BYTES, max_depth: int = MAX_JSON_DEPTH, sealed: bool | None = False,
) -> Any:  # fmt: skip
    """Read a JSON file that may be broken, foreign, hostile or of a newer version.

    Parameters
    ----------
    path : str or Path
    kind : str, optional
        The value that its ``format`` must have; None: a header is not required.
    format_version : int
        The newest version that the caller understands.
    fix : str, optional
        The remedy for a broken file, such as which stage to run again; ends the error message.
    max_bytes, max_depth : int
        Larger or more deeply nested files are refused before they exhaust memory or the stack.
    sealed : bool or None
        The file must hold the digest of its content, as `write_json` adds it; it is removed from the value. None: the
        content must match it where there is one, as in files of a kind that earlier versions wrote without.

    Raises
    ------
    FileError
        Names the file and the fault.
    """
    path = Path(path)
    value = parse_json(_read_bounded(path, max_bytes, fix), path, fix=fix, max_depth=max_depth)
    if kind is not None:
        _check_header(path, value, kind, format_version, fix)
    if sealed or (sealed is None and isinstance(value, dict) and SEAL in value):
        recorded = value.pop(SEAL, None) if isinstance(value, dict) else None
        if recorded != digest_json(value):
            raise FileError(path, "the file must match the digest in it", got="a damaged or edited one", fix=fix)
    return value


def parse_json(
    text: str, path: str | os.PathLike[str], *, fix: str | None = None, max_depth: int = MAX_JSON_DEPTH
) -> Any:
    """Parse a JSON text that was read from the file `path`, with the checks of `read_json` that need no header."""
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


def _read_bounded(path: Path, max_bytes: int, fix: str | None) -> str:
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


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _check_values(path: str | os.PathLike[str], value: Any, max_depth: int, fix: str | None) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > max_depth + 1:
            raise FileError(path, f"JSON must be at most {max_depth} levels deep", got="more", fix=fix)
        below: list[Any] = []
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise FileError(path, "every number must be finite", got=item, fix=fix)
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = below


def _check_header(path: Path, value: Any, kind: str, format_version: int, fix: str | None) -> None:
    recorded = value.get("format") if isinstance(value, dict) else None
    if recorded != kind:
        got = "another file" if recorded is None else repr(recorded)
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
