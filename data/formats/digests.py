"""SHA-256 digests of files and of JSON values."""

import hashlib
import json
import os
from pathlib import Path

from decomp.errors import FileError


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
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=plain_value)
    return hashlib.sha256(text.encode()).hexdigest()


def plain_value(value):
    """Plain data for a value that `json` cannot write: arrays and scalars of numpy and torch, and paths."""
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
