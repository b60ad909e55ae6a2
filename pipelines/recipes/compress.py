"""The whole path in one call, for a network and images that a caller holds: no names, no run directory left behind."""

import copy
import tempfile
from pathlib import Path

import torch

from decomp.errors import DecompError, UsageError

from ...data import given
from ...data.formats import network_file
from ...data.models import LoadedModel
from ...data.weights import check_finite, digest_state_dict
from ..console.reporter import Reporter
from ..reporting.summary import summarise
from ..run.directory import RunDirectory
from ..stages.decompose import decompose
from ..stages.freeze import check_counts, freeze_loaded


def compress(model, images, speedup=4.0, *, n_images=5000, n_points=10, seed=0, device="auto", quiet=True, **options):
    """Make a network several times cheaper.

    Parameters
    ----------
    model : torch.nn.Module
        Trained; it is not changed.
    images : Tensor or ndarray of shape (N, C, H, W), or an iterable of batches such as a DataLoader
        Images that the network was trained on, as it takes them. Labels are not needed. An iterable should give them
        in random order.
    speedup : float
        Multiply-accumulates of the original over those of the result, above 1.
    n_images : int
        At most so many images are used, a tenth of them held out of every fit.
    n_points : int
        Output positions per image and layer.
    seed : int
    device : {'auto', 'cpu', 'cuda'}
    quiet : bool
        Without lines about each step.
    **options
        Of :func:`decomp.pipelines.stages.decompose.decompose`: ``steps``, ``selector``, ``allocation``, ...

    Returns
    -------
    network : torch.nn.Module
        In evaluation mode, of the same class and on the same device as `model` where its modules can be exchanged
        in a copy of it; otherwise a traced network that stands alone.
    report : decomp.pipelines.reporting.summary.Summary
        Costs, closeness of the outputs and a table of layers; ``print(report)``, or look at it in a notebook.

    Raises
    ------
    DecompError
        Of the family in decomp.errors, one line each.

    Notes
    -----
    Works in a temporary folder (``TMPDIR``), which takes about as much room as the images and the responses at the
    points, and is removed.

    Examples
    --------
    >>> network, report = decomp.compress(model, loader, speedup=4)  # doctest: +SKIP
    """
    if not isinstance(model, torch.nn.Module):
        raise UsageError("model", "must be a torch.nn.Module", got=type(model).__name__)
    check_counts(n_images, n_points)
    source = given.source_of(images, n_images)
    reporter = Reporter(quiet=quiet)
    with tempfile.TemporaryDirectory(prefix="decomp-") as folder:
        run = RunDirectory.create(Path(folder) / "run")
        asked = {
            "model": f"{type(model).__name__} in memory", "weights": None, "data": given.NAME, "input_size": None,
            "n_images": n_images, "n_points": n_points, "seed": seed, "skip_bad": False, "part": None, "leaves": [],
        }  # fmt: skip
        loaded = _loaded(model, source.input_shape)
        with run.lock(), reporter.stage("freeze"):
            freeze_loaded(run, loaded, source, asked, batch_size=100, device=device, reporter=reporter)
        decompose(run, speedup=speedup, device=device, reporter=reporter, **options)
        network = _as_class(run.model_dir, loaded.module, source.input_shape)
        parameter = next(model.parameters(), None)
        return network.to(parameter.device if parameter is not None else "cpu"), summarise(run)


def _loaded(model, shape):
    """A float32 copy on the CPU, so that the caller's own network stays as it is."""
    module = copy.deepcopy(model).cpu().float().eval()
    name, state = type(model).__name__, module.state_dict()
    check_finite(state, name)
    return LoadedModel(module, name, shape, digest_state_dict(state), given.NAME)


def _as_class(path, model, shape):
    """The network in the class of the original where that gives the same outputs, else standing alone."""
    alone = network_file.load(path)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        network = network_file.load(path, into=model)
        with torch.no_grad():
            wanted, got = alone(x), network(x)
        same = (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    except (DecompError, RuntimeError, TypeError):
        return alone
    return network if same else alone
