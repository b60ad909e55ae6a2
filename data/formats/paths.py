"""File names made from the names of layers and networks."""

from __future__ import annotations

import re


def safe_name(name: object, max_length: int = 100) -> str:
    """Turn any name into the name of a file: no separators, no ``..``, not hidden, at most `max_length` long."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", str(name))
    return re.sub(r"\.{2,}", "_", name).strip(".")[:max_length] or "_"
