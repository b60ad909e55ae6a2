"""Names of the runtimes, and their requirements: packages, memory layouts and devices; nothing here imports torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from decomp.errors import DecompError, check_choice

#: The memory layouts of images and weights.
LAYOUTS = ("contiguous", "channels-last")


@dataclass(frozen=True)
class Requirements:
    """Requirements of a runtime.

    Attributes
    ----------
    packages : tuple of str
        Modules that must be importable.
    extra : str
        The extra of this package that installs them.
    layouts : tuple of str
        Of the images that it takes. A runtime that takes one alone orders the numbers inside as it likes.
    devices : tuple of str
        Kinds of devices on which it runs here.
    """

    packages: tuple[str, ...] = ()
    extra: str = ""
    layouts: tuple[str, ...] = LAYOUTS
    devices: tuple[str, ...] = ("cpu", "cuda")


#: By name, in the order of tables.
RUNTIMES: dict[str, Requirements] = {
    "eager": Requirements(),
    "compile": Requirements(),
    "onnxruntime": Requirements(("onnxruntime", "onnx", "onnxscript"), "onnx", ("contiguous",), ("cpu",)),
    "openvino": Requirements(("openvino",), "openvino", ("contiguous",), ("cpu",)),
}


def lacking(name: str) -> tuple[str, ...]:
    """The packages that a runtime needs and that are not installed."""
    return tuple(package for package in RUNTIMES[name].packages if importlib.util.find_spec(package) is None)


def require_installed(name: str) -> None:
    """Refuse a runtime whose packages are not all installed.

    Raises
    ------
    UsageError
        The name is not known.
    DecompError
        Names the packages that are missing and the extra that installs them.
    """
    check_choice("runtime", name, RUNTIMES)
    if missing := lacking(name):
        raise DecompError(
            name, f"this runtime needs {', '.join(missing)}, not installed", fix=f"{install_command(name)}"
        )


def install_command(name: str) -> str:
    """The command that installs a runtime's packages."""
    return f'pip install "decomp[{RUNTIMES[name].extra}]"'


def require_supported(name: str, layout: str, device: str) -> None:
    """Refuse a memory layout or a kind of device that a runtime does not take.

    Parameters
    ----------
    name : str
        Of :data:`RUNTIMES`.
    layout : str
        Of :data:`LAYOUTS`.
    device : {'cpu', 'cuda'}

    Raises
    ------
    DecompError
    """
    check_choice("layout", layout, LAYOUTS)
    needs = RUNTIMES[name]
    if device not in needs.devices:
        rule = f"this runtime is measured on {' and '.join(needs.devices)} only"
        raise DecompError(name, rule, got=f"the device {device}", fix=f"choose the device {needs.devices[0]}")
    if layout not in needs.layouts:
        rule = f"this runtime takes images with the layout {' or '.join(needs.layouts)} and orders them itself"
        raise DecompError(name, rule, got=layout, fix=f"choose the layout {needs.layouts[0]}")
