"""Choice of a runtime by name."""

from __future__ import annotations

from collections.abc import Callable

from decomp.runtimes.compiled import Compiled
from decomp.runtimes.eager import Eager
from decomp.runtimes.names import require_installed
from decomp.runtimes.onnx import OnnxRuntime
from decomp.runtimes.openvino import OpenVino
from decomp.runtimes.runtime import Runtime

_MADE: dict[str, Callable[[str], Runtime]] = {
    "eager": Eager, "compile": Compiled, "onnxruntime": OnnxRuntime, "openvino": OpenVino,
}  # fmt: skip


def runtime(name: str, layout: str = "contiguous") -> Runtime:
    """The runtime of a name.

    Parameters
    ----------
    name : str
        Of :data:`decomp.runtimes.names.RUNTIMES`.
    layout : str
        Of the images, of :data:`decomp.runtimes.names.LAYOUTS`.

    Raises
    ------
    UsageError
        The name or the layout is not known, or the runtime does not take that layout.
    DecompError
        The runtime is not installed.
    """
    require_installed(name)
    return _MADE[name](layout)
