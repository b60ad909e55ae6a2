"""Make a trained convolutional network several times cheaper, layer by layer, without training.

In a checkout, ``data/``, ``pipelines/`` and ``cli.py`` lie beside this folder; in an installation they lie inside it.
Either way they are imported as ``decomp.data``, ``decomp.pipelines`` and ``decomp.cli``, so that a user's own ``data``
or ``pipelines`` package is never taken for ours.
"""

from __future__ import annotations

import sys as _sys
from importlib import import_module as _import_module
from importlib.util import spec_from_file_location as _spec_from_file_location
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # For type checkers and editors that look at an installation, where pipelines/ lies in this folder.
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from decomp.pipelines import task_handle as tasks  # noqa: F401
    from decomp.pipelines.api import (
        compare,
        compress,
        decompose,
        decompose_within,
        evaluate,
        export,
        finetune,
        folded,
        freeze,
        prune,
        prune_run,
        report,
        sensitivity,
        slim,
        summarise,
        train,
        trainable,
    )
    from decomp.pipelines.run.loading import load
    from decomp.pipelines.run.saving import save

__version__ = "0.1.0"
__all__ = [
    "compare", "compress", "decompose", "decompose_within", "evaluate", "export", "finetune", "folded", "freeze",
    "load", "prune", "prune_run", "report", "save", "sensitivity", "slim", "summarise", "tasks", "train", "trainable",
]  # fmt: skip


class _CheckoutFinder:
    """Import finder for the three names that lie beside this folder in a checkout, and for nothing else there."""

    def __init__(self, checkout: _Path) -> None:
        self.files = {
            "decomp.data": checkout / "data" / "__init__.py",
            "decomp.pipelines": checkout / "pipelines" / "__init__.py",
            "decomp.cli": checkout / "cli.py",
        }

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self.files.get(name)
        if file is None:
            return None
        folders = [str(file.parent)] if file.name == "__init__.py" else None
        return _spec_from_file_location(name, file, submodule_search_locations=folders)


_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").exists() and (_checkout / "pipelines" / "__init__.py").exists():
    _sys.meta_path.append(_CheckoutFinder(_checkout))


def __getattr__(name: str) -> Any:
    # Lazy, so that `decomp --help` answers without importing torch.
    if name in ("load", "save"):
        return getattr(_import_module(f"decomp.pipelines.run.{'loading' if name == 'load' else 'saving'}"), name)
    if name == "schemes":
        return _import_module("decomp.schemes")
    if name == "tasks":
        return _import_module("decomp.pipelines.task_handle")
    if name in __all__:
        return getattr(_import_module("decomp.pipelines.api"), name)
    raise AttributeError(f"module 'decomp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
