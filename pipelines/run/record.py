"""Record of a run: library versions and the log of its steps."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import decomp

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn")


def library_versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that results depend on, without importing torch."""
    versions = {"python": platform.python_version(), "decomp": decomp.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Events of a log.jsonl in order; lines that are no events, such as one cut short by a kill, are left out."""
    events: list[dict[str, Any]] = []
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return events
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def last_saved_epoch(path: str | os.PathLike[str], stage: str) -> str | None:
    """``'epoch 3 of 5'``: the last epoch in a log.jsonl that is in the stage's checkpoint; None where there is none.

    An epoch is logged after it is saved; that of a training which diverged is logged with ``saved`` false.
    """
    for event in reversed(read_log(path)):
        if event.get("stage") == stage and event.get("saved", True):
            if found := re.match(r"epoch \d+ of \d+", str(event.get("message"))):
                return found[0]
    return None
