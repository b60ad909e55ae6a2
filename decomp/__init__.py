"""Make a trained convolutional network several times cheaper, layer by layer, without training.

The rooms beside this package in a checkout (``data/``, ``pipelines/``, ``cli.py``) are imported as
``decomp.data``, ``decomp.pipelines`` and ``decomp.cli``, both from a checkout and when installed, so
that a user's own ``data`` or ``pipelines`` package can never be taken for ours.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"
__all__ = [
    "compare", "compress", "decompose", "evaluate", "export", "finetune", "freeze", "load", "report", "summarise",
]  # fmt: skip

_beside = _Path(__file__).resolve().parent.parent
if (_beside / "setup.py").exists() and (_beside / "pipelines" / "__init__.py").exists():
    # A checkout (or an editable install): the other rooms lie beside this folder, not inside it.
    __path__.append(str(_beside))


def __getattr__(name):
    # Lazy, so that `decomp --help` answers without importing torch.
    if name == "load":
        from decomp.pipelines.emit import load

        return load
    if name in __all__:
        from decomp.pipelines import api

        return getattr(api, name)
    raise AttributeError(f"module 'decomp' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
