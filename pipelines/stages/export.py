"""Stage ``export``: write a network in formats that load without this package, each compared with the network.

Every file contains the same JSON metadata (origin, plan, costs, normalisation of the images): see :func:`metadata`, and
:mod:`decomp.data.formats.exported` for its place in each format.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import decomp
from decomp import seeds
from decomp.cost.count import cost
from decomp.errors import DecompError, FileError, UsageError
from decomp.execution.outputs import leaves

from ...data.formats import network_file
from ...data.formats.atomic import commit
from ...data.formats.digests import digest_file
from ...data.formats.exported import FORMATS
from ...data.plain_network import dtype_of
from ..console import parse
from ..console.options import run_formats
from ..console.reporter import Reporter
from ..measure import int8
from ..run import loading
from ..run.directory import RunDirectory
from ..run.networks import NETWORKS, find_network
from ..run.record import library_versions

#: Largest difference to the module's outputs, relative to the largest of them.
TOLERANCE = 1e-4
#: The same in precisions of three and two digits.
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
#: Batch size of the traced example, and batch sizes with which the written file is checked.
TRACED_BATCH, CHECKED_BATCHES = 3, (1, 5)
#: Python code that loads a file of each format.
LOADED_BY = {
    "pt2": "torch.export.load({file!r}).module()",
    "onnx": "onnxruntime.InferenceSession({file!r})",
    "onnx-int8": "onnxruntime.InferenceSession({file!r})",
    "torchscript": "torch.jit.load({file!r})",
    "state-dict": "decomp.load('{network}').load_state_dict(torch.load({file!r}, weights_only=True))",
    "safetensors": "decomp.load('{network}').load_state_dict(safetensors.torch.load_file({file!r}))",
}
#: Axes of a batch of images that can be dynamic beside the first.
SIDES = {2: "height", 3: "width"}
EXTRA = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Exported:
    """One written file.

    Attributes
    ----------
    difference : float
        Largest difference to the module's outputs, relative to the largest output.
        For 'onnx-int8' the squared difference over the variance of the outputs, on held-out images.
    sizes : str
        Sizes of images that the file takes, in words; '' for weights.
    words : str
        Other lines for people.
    """

    format: str
    path: str
    bytes: int
    difference: float
    load_seconds: float
    sizes: str = ""
    words: str = ""


@dataclass(frozen=True)
class ExportResult:
    """Files of one export, all of the same network.

    Attributes
    ----------
    run : RunDirectory
    network : str
        'finetuned', 'pruned', 'decomposed' or 'original'.
    exported : list of Exported
    """

    run: RunDirectory
    network: str
    exported: list[Exported] = field(repr=False)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        width = max(len(item.path) for item in self.exported)
        for item in self.exported:
            yield (
                f"{item.path:<{width}}  {item.format}, {item.bytes / 2**10:,.0f} KiB, loads in "
                f"{item.load_seconds:.2f} s"
                + (f", outputs differ by {item.difference:.1e}" if not item.words else "")
                + (f", takes {item.sizes}" if item.sizes else "")
            )
            yield from item.words.split("\n") if item.words else ()
        batches = " and ".join(map(str, CHECKED_BATCHES))
        but = " but that of 8 bits" if any(item.words for item in self.exported) else ""
        yield f"{self.network} network of {self.run}; each file{but} checked on random inputs, batch sizes {batches}"
        source = self.run.path / next(entry.folder for entry in NETWORKS if entry.name == self.network)
        for item in self.exported:
            yield f"next, in Python: {LOADED_BY[item.format].format(file=item.path, network=source)}"


def export(
    run: str | os.PathLike[str] | RunDirectory,
    *,
    formats: str | Sequence[str] = ("pt2", "state-dict"),
    which: str | None = None,
    out: str | os.PathLike[str] | None = None,
    dynamic: str | Sequence[str] = ("auto",),
    reporter: Reporter | None = None,
) -> ExportResult:
    """Write a network of a run in formats that load without this package.

    Parameters
    ----------
    run : path or RunDirectory
    formats : sequence of str
        Of :data:`FORMATS`: 'pt2', 'onnx', 'torchscript', 'state-dict', 'safetensors'; or 'onnx-int8', with weights and
        activations of 8 bits, calibrated on images of the run and compared with the network on the held-out ones.
    which : {'finetuned', 'pruned', 'decomposed', 'original'}, optional
        By default the first of these that the run holds.
    out : path, optional
        The folder to write to; by default ``export/`` in the run. Files are named after the network.
    dynamic : str or sequence of str
        Sizes of the images that programs leave open beside that of the batch: 'height', 'width' or both, which the
        network must take, 'none', or 'auto' for those that it takes. Some runtimes optimise files of one size further.
    reporter : Reporter, optional

    Returns
    -------
    ExportResult

    Raises
    ------
    UsageError
        A format or network that is not known, or a dynamic size that the network does not take.
    FileError
        The run does not hold that network.
    DecompError
        A format cannot hold the network, or gives other outputs; no file of that format is left then.

    Notes
    -----
    All files run on the CPU or wherever they are moved to, with any batch size, in float32 or in the precision of the
    original where that is another one. Programs take images of other heights and widths where the network does; each is
    then compared at a second size too.
    """
    formats, dynamic = run_formats(formats), parse.dynamic(dynamic)
    if {"onnx", int8.NAME} & set(formats):
        _require_onnx()
    run, reporter = RunDirectory.open(run), reporter or Reporter()
    chosen = find_network(run, which)
    path = chosen.path(run)
    with run.lock(), reporter.stage("export"):
        folder = Path(out) if out is not None else run.export_dir
        return ExportResult(run, chosen.name, _export(run, path, chosen.name, formats, folder, reporter, dynamic))


def _export(
    run: RunDirectory, path: Path, which: str, formats: Sequence[str], folder: Path, reporter: Reporter,
    dynamic: tuple[str, ...] = ("auto",),
) -> list[Exported]:  # fmt: skip
    """Write the network at a path into a folder."""
    network = loading.load_network(run, path)
    structure = network_file.read_structure(path)
    shape = structure["input_shape"]
    if not shape:
        raise FileError(path, "does not say what shape its input has", fix="make it again with decompose --redo")
    text = json.dumps(metadata(run, path, which, network), ensure_ascii=False)
    loading.in_own_precision(network, structure)
    by_size = (run.config("freeze") or {}).get("facts", {}).get("branches")
    axes = _asked_axes(dynamic, () if by_size or dynamic == ("none",) else free_axes(network, tuple(shape)))
    exported = []
    for name in formats:
        reporter.step(f"writing and checking {name}")
        if name == int8.NAME:
            exported.append(_write_int8(run, network, folder / f"{which}{int8.SUFFIX}", text, tuple(shape)))
            continue
        file = folder / f"{which}{FORMATS[name].suffix}"
        exported.append(_write(name, network, tuple(shape), file, text, axes, dynamic != ("auto",)))
    return exported


def _write_int8(run: RunDirectory, network: nn.Module, path: Path, text: str, shape: tuple[int, ...]) -> Exported:
    """Write an 8-bit file, calibrated on the images that were fitted and compared on the others."""
    frozen, _ = loading.open_frozen(run)
    with frozen, commit(path) as part, _one_line_errors(int8.NAME, path):
        f = int8.write(network, part, text, frozen)
    size, seconds = path.stat().st_size, round(f.load_seconds, 3)
    return Exported(int8.NAME, str(path), size, f.relative, seconds, _size_words(shape, ()), f.words)


def require_format(run: RunDirectory, path: Path, name: str) -> None:
    """Refuse a format that cannot hold a network.

    Parameters
    ----------
    run : RunDirectory
    path : Path
        The network directory; its numbers do not matter.
    name : str
        As for :func:`export`.

    Raises
    ------
    DecompError
    """
    if name in ("onnx", int8.NAME):
        _require_onnx()
    with tempfile.TemporaryDirectory(prefix="decomp-") as folder:
        try:
            _export(run, path, "decomposed", [name], Path(folder), Reporter(quiet=True))
        except DecompError as error:
            rule = f"a network of this kind cannot be exported ({error.rule}), as random weights show"
            raise DecompError(name, rule, got=error.got, fix="leave this format out") from error


def metadata(run: RunDirectory, path: Path, which: str, network: nn.Module) -> dict[str, Any]:
    """Metadata of an exported file, as plain data.

    Returns
    -------
    dict
        ``origin`` (model, weights, images, network, digest), ``input_shape``, ``normalisation`` of the images and, in
        words, their ``preprocessing``, ``plan`` (None for the original), ``costs`` (multiply-accumulates and
        parameters, before and after), ``versions``.
    """
    structure, frozen = network_file.read_structure(path), run.config("freeze") or {}
    shape, source = structure["input_shape"], frozen.get("source") or {}
    before = cost(loading.load_network(run, run.original_dir), shape)
    after = cost(network, shape)
    return {
        "format": "decomp-export",
        "format_version": 1,
        "origin": {
            "model": frozen.get("asked", {}).get("model"), "weights_digest": frozen.get("weights_digest"),
            "data": source.get("name"), "data_digest": source.get("digest"), "network": which,
            "structure_digest": digest_file(path / "structure.json"),
        },
        "input_shape": list(shape),
        "normalisation": source.get("normalisation"),
        "preprocessing": source.get("preprocessing"),
        "plan": structure["meta"].get("plan"),
        "costs": {
            "macs_before": before.macs, "macs": after.macs, "params_before": before.params, "params": after.params,
        },
        "versions": {**library_versions(), "decomp": decomp.__version__},
    }  # fmt: skip


def free_axes(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of a batch of images (2: height, 3: width) along which a network takes other sizes than its own.

    Parameters
    ----------
    network : torch.nn.Module
    shape : tuple of int
        (C, H, W) of its own images.
    """
    for axes in ((2, 3), (2,), (3,)) if len(shape) == 3 else ():
        images = torch.zeros(1, *_larger(shape, axes), dtype=dtype_of(network))
        try:
            with torch.no_grad():
                outputs = _tensors(network(images))
        except Exception:  # of any class: the network is not made for this size
            continue
        # A view may turn a larger map into more images.
        if all(output.dim() and len(output) == 1 for output in outputs):
            return axes
    return ()


def _asked_axes(dynamic: tuple[str, ...], free: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that are asked for, of those that are free."""
    if dynamic == ("auto",):
        return free
    axes = tuple(axis for axis, name in SIDES.items() if name in dynamic)
    if not set(axes) <= set(free):
        takes = f"it takes another {' and '.join(SIDES[axis] for axis in free)}" if free else "it takes one size only"
        rule = f"the network must take images of other sizes there; {takes}"
        raise UsageError("--dynamic", rule, got=",".join(dynamic), fix="leave it out")
    return axes


def _larger(shape: tuple[int, ...], axes: Sequence[int]) -> tuple[int, ...]:
    """A second size; where a network needs multiples of a number, the first size is one and the second then too."""
    return tuple(
        size if axis not in axes else size + 64 if size % 64 == 0 else 2 * size for axis, size in enumerate(shape, 1)
    )


def _write(
    name: str, network: nn.Module, shape: tuple[int, ...], path: Path, text: str, axes: Sequence[int], asked: bool
) -> Exported:
    """Write one file under a temporary name, read it back, compare, and rename it; first for all sizes, if it can.

    Where the sizes are `asked` for, a format that cannot hold them is refused.
    """
    form = FORMATS[name]
    with commit(path) as part, _one_line_errors(name, path):
        if axes and form.is_program:
            try:
                difference, seconds = _write_checked(name, network, shape, part, text, axes)
            except Exception:  # the format cannot hold a network of free sizes
                if asked:
                    raise
                axes = ()
        if not axes or not form.is_program:
            difference, seconds = _write_checked(name, network, shape, part, text, ())
    sizes = _size_words(shape, axes) if form.is_program else ""
    return Exported(name, str(path), path.stat().st_size, difference, round(seconds, 3), sizes)


def _write_checked(
    name: str, network: nn.Module, shape: tuple[int, ...], path: Path, text: str, axes: Sequence[int]
) -> tuple[float, float]:
    """Write a file, read it back and compare it; its largest difference and the seconds it takes to load."""
    form = FORMATS[name]
    example = torch.randn(TRACED_BATCH, *shape, generator=seeds.generator(0, "export", "traced")).to(dtype_of(network))
    form.write(network, example, str(path), text, axes)
    start = time.perf_counter()
    run, kept = form.read(str(path), network)
    seconds = time.perf_counter() - start
    if json.loads(kept) != json.loads(text):
        raise DecompError(path, f"{name} does not keep the metadata of the network")
    shapes = [shape, _larger(shape, axes)] if axes else [shape]
    return max(_difference(network, run, one, batch) for one in shapes for batch in CHECKED_BATCHES), seconds


def _size_words(shape: tuple[int, ...], axes: Sequence[int]) -> str:
    if not axes:
        return f"images of {'x'.join(map(str, shape[1:]))} only"
    sides = " and ".join(f"{SIDES[axis]}s" for axis in axes)
    return f"images of other {sides} too (checked at {'x'.join(map(str, _larger(shape, axes)[1:]))})"


def _difference(network: nn.Module, run: Callable[[Tensor], Any], shape: tuple[int, ...], batch: int) -> float:
    images = torch.randn(batch, *shape, generator=seeds.generator(0, "export", "checked", batch))
    images, tolerance = images.to(dtype_of(network)), TOLERANCES.get(dtype_of(network), TOLERANCE)
    with torch.no_grad():
        wanted, got = (_tensors(output) for output in (network(images), run(images)))
    worst = 0.0
    for one, other in zip(wanted, got, strict=True):
        if one.shape != other.shape:
            raise DecompError("export", f"must give outputs of {tuple(one.shape)}", got=tuple(other.shape))
        worst = max(worst, ((one - other).abs().max() / one.abs().max().clamp_min(1e-12)).item())
    if not worst <= tolerance:
        rule = f"the written file must give the module's outputs to {tolerance:g}, in a batch of {batch}"
        raise DecompError("export", rule, got=f"{worst:.2g}")
    return worst


def _tensors(output: Any) -> list[Tensor]:
    return [value for _, value in leaves(output) if isinstance(value, Tensor)]


@contextmanager
def _one_line_errors(name: str, path: Path) -> Iterator[None]:
    """Turn any error of a library into one line, and hide its warnings, which are for its developers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DecompError, OSError, MemoryError):
        raise
    except Exception as error:
        # Exporters begin with what they tried; the reason is at the end of the chain.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise DecompError(path, f"cannot be written as {name} ({reason})", fix="leave this format out") from error


def _require_onnx() -> None:
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise DecompError(
            "onnx", f"this format needs {', '.join(missing)}, not installed", fix='pip install "decomp[export]"'
        )
