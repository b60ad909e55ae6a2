"""Training schemes: objects that change a network while it is trained."""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decomp.schemes.repr_training import RePr

__all__ = ["RePr"]


def __getattr__(name: str) -> Any:
    # Lazy: the names of settings are read without torch.
    if name == "RePr":
        return _import_module("decomp.schemes.repr_training").RePr
    raise AttributeError(f"module 'decomp.schemes' has no attribute {name!r}")
