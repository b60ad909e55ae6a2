"""Compress a network and images held in memory in one call, in a temporary folder or in a run directory that stays."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from decomp.errors import UsageError, near_miss
from decomp.graph.autocast import AUTOCAST

from ...data import given
from ...data.formats import network_file
from ...data.models import MEMORY
from ..console.options import DecomposeOptions, FreezeOptions
from ..console.python_words import said_for_python
from ..console.reporter import Reporter
from ..decomposition.emission import unused_work
from ..decomposition.make_plan import decompose_options, read_plan
from ..measure import sanity
from ..measure.resources import Resources
from ..reporting.summary import Summary, summarise
from ..run.directory import RunDirectory
from ..run.saving import attach_record
from ..stages.decompose import decompose
from ..stages.freeze import freeze_once
from .give_back import as_it_came, in_class_of
from .in_memory import loaded_copy, module_of

#: Names of this function's arguments, where options of the command line are named otherwise.
ARGUMENTS = {
    "data": "images", "images": "n_images", "points": "n_points", "leaf": "leaves", "weights": "model",
    "layout": "latency_layout", "batch-size": "latency_batch",
}  # fmt: skip


def compress(
    model: nn.Module | ExportedProgram,
    images: Any,
    speedup: float | str | None = 4.0,
    *,
    n_images: int = 5000,
    n_points: int = 10,
    mix: bool = True,
    seed: int = 0,
    module: str | None = None,
    leaves: Sequence[str] = (),
    input_size: Any = None,
    skip_bad: bool = False,
    run: str | os.PathLike[str] | None = None,
    redo: bool = False,
    device: str = "auto",
    batch_size: int = 100,
    memory: int | str | None = None,
    outputs: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> tuple[nn.Module, Summary]:
    """Make a network several times cheaper.

    Parameters
    ----------
    model : torch.nn.Module or torch.export.ExportedProgram
        Trained; it is not changed. DataParallel and torch.compile are taken off. A network in half or double precision
        is fitted in float32 and comes back in its own precision.
    images : Tensor or ndarray of shape (N, C, H, W), a Dataset, or an iterable of batches (a DataLoader) or images
        Training images of the network, in the form that it takes. Labels are not needed; where class numbers come with
        the images, outputs of as many numbers are known to be class scores. An iterable should give them in random
        order.
    speedup : float or str
        Multiply-accumulates of the original over those of the result, above 1: ``4`` or ``'4x'``.
    n_images : int
        Upper limit of the images, a tenth of them held out of every fit.
    n_points : int
        Output positions per image and layer.
    mix : bool
        Where there are fewer than 1,000 images, fit also to mixtures of two of them.
    seed : int
    module : str, optional
        Path of the submodule that is compressed, such as ``'backbone'``; it must take the images (``part`` of
        :func:`decomp.freeze`).
    leaves : sequence of str
        Paths of modules, in that submodule, that are not traced and stay as they are.
    input_size : str or sequence of int, optional
        ``'224'``, ``'28x28'`` or ``(3, 224, 224)``: the images are resized to it.
    skip_bad : bool
        Leave out images with NaN or infinite values, instead of refusing them.
    run : path, optional
        Keep a run directory here, for the stages and commands that take one; the same call continues an interrupted
        one. The network is not in it as code: load results with ``decomp.load(run, into=model)``.
    redo : bool
        Delete an earlier decomposition in `run`.
    device : {'auto', 'cpu', 'cuda'}
    batch_size, memory
        Of :func:`decomp.pipelines.stages.decompose.decompose`.
    outputs : {'scores', 'values'}, optional
        Meaning of rows of numbers that the network returns: class scores, whose probabilities are to stay, or values
        of another meaning. Where it is not given, see :func:`decomp.execution.output_kinds.decide_kinds`.
    quiet : bool
        Without lines and progress bars, which are written to standard error.
    **options
        Fields of :class:`decomp.pipelines.console.options.DecomposeOptions`: ``steps``, ``selector``,
        ``allocation``, ... and ``plan``, the path of a plan.

    Returns
    -------
    network : torch.nn.Module
        In evaluation mode, of the same class, device, precision and memory layout as `model` where its modules can be
        exchanged in a copy of it; otherwise a traced network that stands alone, and the report says why.
        :func:`decomp.save` keeps it.
    report : decomp.pipelines.reporting.summary.Summary
        Costs, closeness of the outputs and a table of layers; ``print(report)``, or display it in a notebook.

    Raises
    ------
    DecompError
        UsageError for an unknown option or a value that is not allowed, before any work; others of decomp.errors.

    Notes
    -----
    Without `run` it works in a temporary folder (``TMPDIR``), which takes about as much space as the images and the
    responses at the points, and is removed.

    Examples
    --------
    >>> network, report = decomp.compress(model, loader, speedup=4)  # doctest: +SKIP
    """
    with said_for_python(ARGUMENTS):
        original = module_of(model)
        name = f"{type(original).__name__}{MEMORY}"
        frozen = FreezeOptions(
            model=name, data=given.NAME, input_size=input_size, n_images=n_images, n_points=n_points, seed=seed,
            skip_bad=skip_bad, part=module, leaves=(leaves,) if isinstance(leaves, str) else tuple(leaves),
            outputs=outputs, mix=mix,
        )  # fmt: skip
        _check_options(options)
        plan = None if options.get("plan") is None else read_plan(options["plan"])
        choices = {key: value for key, value in options.items() if key != "plan"}
        decompose_options(plan, speedup=speedup, **choices)
        resources = Resources.of(device, memory, batch_size)
        loaded = loaded_copy(original)
        source = given.source_of(
            images, n_images, input_size=input_size, skip_bad=skip_bad, seed=seed, network=loaded.module
        )
        loaded.input_shape = source.input_shape
        reporter = Reporter(quiet=quiet) if run is None else Reporter.for_run(RunDirectory(run), quiet=quiet)
        with ExitStack() as stack:
            if run is None:
                run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="decomp-"))) / "run"
            frozen_run = freeze_once(RunDirectory(run), frozen, lambda: (loaded, source), resources, reporter)
            place = frozen_run.run
            for line in sanity.lines(frozen_run.facts["sanity"]) if "sanity" in frozen_run.facts else []:
                reporter.step(line)
            if frozen_run.facts.get("autocast"):
                reporter.step(AUTOCAST)
            decompose(
                place, speedup=speedup, device=device, batch_size=batch_size, memory=memory, original=loaded.module,
                redo=redo, reporter=reporter, **options,
            )  # fmt: skip
            network, reason = in_class_of(loaded.module, place.model_dir)
            attach_record(network, network_file.read_structure(place.model_dir))
            place.original = loaded.module
            report = summarise(place)
            notes = [*report.notes, reason or unused_work(network, place.model_dir)]
            notes += sanity.doubts(place.config("freeze"))
            return as_it_came(network, original), replace(report, notes=[note for note in notes if note])


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options that there are not, with the closest one."""
    own = [name for name in inspect.signature(compress).parameters if name not in ("model", "images", "options")]
    known = list(dict.fromkeys([*own, *DecomposeOptions.__dataclass_fields__]))
    otherwise = {"part": "module", "leaf": "leaves", "points": "n_points"}
    for name in options:
        if name not in known:
            close = f"did you mean {otherwise[name]}" if name in otherwise else near_miss(name, known)
            rule = "is no option of compress"
            if name == "max_drop":
                rule += ", which has no images beside those of the fits to measure a loss on"
                close = (
                    "name the network and its images, decomp.freeze(run, model='FILE.py:NAME', data='FILE.py:NAME'), "
                    "then decomp.decompose_within(run, max_drop='1%')"
                )
            raise UsageError(name, rule, fix=close or f"there are {', '.join(known)}")
