"""Compress a network and images held in memory in one call; leaves no run directory."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp.errors import DecompError, UsageError

from ...data import given
from ...data.formats import network_file
from ...data.models import LoadedModel
from ...data.weights import check_finite, digest_state_dict
from ..console import parse
from ..console.options import FreezeOptions
from ..console.reporter import Reporter
from ..decomposition.make_plan import decompose_options, read_plan
from ..reporting.summary import Summary, summarise
from ..run.directory import RunDirectory
from ..stages.decompose import decompose
from ..stages.freeze import freeze_loaded


def compress(
    model: nn.Module,
    images: Any,
    speedup: float | str | None = 4.0,
    *,
    n_images: int = 5000,
    n_points: int = 10,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 100,
    memory: int | str | None = None,
    quiet: bool = True,
    **options: Any,
) -> tuple[nn.Module, Summary]:
    """Make a network several times cheaper.

    Parameters
    ----------
    model : torch.nn.Module
        Trained; it is not changed.
    images : Tensor or ndarray of shape (N, C, H, W), or an iterable of batches such as a DataLoader
        Training images of the network, in the form that it takes. Labels are not needed. An iterable should give
        them in random order.
    speedup : float
        Multiply-accumulates of the original over those of the result, above 1.
    n_images : int
        Upper limit of the images, a tenth of them held out of every fit.
    n_points : int
        Output positions per image and layer.
    seed : int
    device : {'auto', 'cpu', 'cuda'}
    batch_size, memory
        Of :func:`decomp.pipelines.stages.decompose.decompose`.
    quiet : bool
        Without lines about each step.
    **options
        Fields of :class:`decomp.pipelines.console.options.DecomposeOptions`: ``steps``, ``selector``,
        ``allocation``, ...

    Returns
    -------
    network : torch.nn.Module
        In evaluation mode, of the same class and on the same device as `model` where its modules can be exchanged
        in a copy of it; otherwise a traced network that stands alone.
    report : decomp.pipelines.reporting.summary.Summary
        Costs, closeness of the outputs and a table of layers; ``print(report)``, or display it in a notebook.

    Raises
    ------
    DecompError
        UsageError for an unknown option or a value that is not allowed, before any work; others of decomp.errors.

    Notes
    -----
    Works in a temporary folder (``TMPDIR``), which takes about as much space as the images and the responses at the
    points, and is removed.

    Examples
    --------
    >>> network, report = decomp.compress(model, loader, speedup=4)  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        raise UsageError("model", "must be a torch.nn.Module", got=type(model).__name__)
    frozen = FreezeOptions(
        model=f"{type(model).__name__} in memory", data=given.NAME, n_images=n_images, n_points=n_points, seed=seed
    )
    choices = {name: value for name, value in options.items() if name != "plan"}
    plan = None if options.get("plan") is None else read_plan(options["plan"])
    decompose_options(plan, speedup=speedup, **choices)
    memory = None if memory is None else parse.memory_bytes(memory)
    source = given.source_of(images, n_images)
    reporter = Reporter(quiet=quiet)
    with tempfile.TemporaryDirectory(prefix="decomp-") as folder:
        run = RunDirectory.create(Path(folder) / "run")
        loaded = _loaded(model, source.input_shape)
        with run.lock(), reporter.stage("freeze"):
            freeze_loaded(
                run, loaded, source, frozen, batch_size=batch_size, device=device, memory=memory, reporter=reporter
            )
        decompose(
            run, speedup=speedup, device=device, batch_size=batch_size, memory=memory, original=loaded.module,
            reporter=reporter, **options,
        )  # fmt: skip
        network = _in_class_of(loaded.module, run.model_dir, source.input_shape)
        parameter = next(model.parameters(), None)
        return network.to(parameter.device if parameter is not None else "cpu"), summarise(run)


def _loaded(model: nn.Module, shape: tuple[int, int, int]) -> LoadedModel:
    """A float32 copy on the CPU, so that the caller's own network stays as it is."""
    module = copy.deepcopy(model).cpu().float().eval()
    name, state = type(model).__name__, module.state_dict()
    check_finite(state, name)
    return LoadedModel(module, name, shape, digest_state_dict(state), given.NAME)


def _in_class_of(model: nn.Module, path: Path, shape: tuple[int, int, int]) -> nn.Module:
    """The network in the class of the original where that gives the same outputs, else the traced one."""
    alone = network_file.load(path)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        network = network_file.load(path, into=model)
        with torch.no_grad():
            wanted, got = alone(x), network(x)
        same = bool((got - wanted).abs().max() <= 1e-5 * wanted.abs().max())
    except (DecompError, RuntimeError, TypeError):
        return alone
    return network if same else alone
