"""SHA-256 digests of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from decomp.errors import FileError


def digest_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of the content of a file."""
    path, digest = Path(path), hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise FileError(path, "the file must be readable", got=error.strerror or error) from None
    return digest.hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON text of a value (sorted keys, no spaces): equal values, equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=plain_value)
    return hashlib.sha256(text.encode()).hexdigest()


def plain_value(value: Any) -> Any:
    """Plain data for a value that `json` cannot write: arrays and scalars of numpy and torch, and paths."""
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
