"""Files of one task as an ordinary network, each read back and compared."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from decomp import seeds
from decomp.cost.count import cost
from decomp.errors import DecompError

from ...data.formats.atomic import commit
from ...data.formats.exported import FORMATS
from ..run.record import library_versions
from .compact import compact
from .store import TaskStore

#: Largest difference of outputs relative to the largest of them.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportedTask:
    """One file: its format, path, bytes, and largest difference of outputs relative to the largest."""

    format: str
    path: str
    n_bytes: int
    difference: float


@dataclass(frozen=True)
class TaskSizes:
    """Parameters and multiply-accumulates of the task's network, at its width and without unused channels."""

    parameters: int
    parameters_compact: int
    macs: int
    macs_compact: int


def export_task(
    store: TaskStore, name: str, formats: Sequence[str], folder: Path
) -> tuple[list[ExportedTask], TaskSizes]:
    """Write a task's network without unused channels in some formats.

    Raises
    ------
    DecompError
        A format cannot hold it, or the file gives other outputs.
    """
    network = store.network(name)
    small = compact(network, store.input_shape)
    before, after = (cost(module, store.input_shape) for module in (network, small))
    task = store.tasks(store.number_of(name))[-1]
    about = {
        "format": "decomp-export", "format_version": 1, "task": name, "number": task.number, "digest": task.content,
        "input_shape": list(store.input_shape), "n_classes": task.n_classes, "options": task.facts.get("options"),
        "versions": library_versions(),
    }  # fmt: skip
    files = [_written(store, network, small, form, folder / f"{name}{FORMATS[form].suffix}", about) for form in formats]
    return files, TaskSizes(before.params, after.params, before.macs, after.macs)


def _written(
    store: TaskStore, network: fx.GraphModule, small: fx.GraphModule, form: str, path: Path, about: dict[str, Any]
) -> ExportedTask:
    example = torch.randn(2, *store.input_shape, generator=seeds.generator(0, "export", "traced"))
    images = torch.randn(5, *store.input_shape, generator=seeds.generator(0, "export", "checked"))
    with commit(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            FORMATS[form].write(small, example, str(part), json.dumps(about, ensure_ascii=False))
            run, _ = FORMATS[form].read(str(part), small)
            with torch.no_grad():
                wanted, got = network(images), run(images)
        except (DecompError, OSError, MemoryError):
            raise
        except Exception as error:  # of a library
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            raise DecompError(path, f"cannot be written as {form} ({reason})", fix="leave this format out") from error
        got = got[0] if isinstance(got, (list, tuple)) else got
        off = float((wanted - got).abs().max() / wanted.abs().max().clamp_min(1e-12))
        if not off <= TOLERANCE:
            raise DecompError(
                path, f"the written file must give the network's outputs to {TOLERANCE:g}", got=f"{off:.2g}"
            )
    return ExportedTask(form, str(path), path.stat().st_size, off)
