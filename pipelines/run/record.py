"""Record of a run: library versions and the log of its steps."""

import importlib.metadata
import json
import platform
from pathlib import Path

import decomp

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn")


def library_versions():
    """Versions of Python, this package and the libraries that numbers depend on, by name; torch is not imported."""
    versions = {"python": platform.python_version(), "decomp": decomp.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def read_log(path):
    """The events of a log.jsonl in order, without what is no event (such as a last line cut short by a kill)."""
    events = []
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
