"""Prune a network held in memory in one call, with or without images."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from decomp.cost.count import cost
from decomp.criteria.names import NEEDS
from decomp.errors import UsageError, near_miss
from decomp.execution.output_spread import Spread
from decomp.execution.outputs import named_tensors

from ...data import given, models
from ...data.formats import network_file
from ...data.models import LoadedModel
from ...data.splits import ImageSource
from ..console import parse
from ..console.layer_table import left_alone_lines
from ..console.options import FreezeOptions
from ..console.prune_options import PruneOptions
from ..console.python_words import python_words, said_for_python
from ..console.reporter import Reporter
from ..decomposition.emission import unused_work
from ..decomposition.prepare import prepare
from ..measure.closeness import closeness_words, compared
from ..measure.devices import pick_device, to_device
from ..pruning.choice import Images
from ..pruning.emission import emit
from ..pruning.images import batched
from ..pruning.plan_file import prune_options, read_plan
from ..pruning.removal import Pruned, remove
from ..pruning.unfolded import Unfolded, unfolded
from ..reporting.summary import Summary, layer_summaries
from ..run.calibration import draw_images, fitted_images
from ..run.saving import RECORD, attach_record
from .give_back import as_it_came, in_class_of
from .in_memory import loaded_copy, module_of

#: Fewest images: one is for the criterion and one is held out.
LEAST = 2
#: Names of this function's arguments, where options of the command line are named otherwise.
ARGUMENTS = {
    "data": "images", "images": "n_images", "leaf": "leaves", "layout": "latency_layout", "batch-size": "latency_batch",
}  # fmt: skip


def prune(
    model: nn.Module | ExportedProgram,
    images: Any = None,
    criterion: str = "l1",
    speedup: float | str | None = None,
    *,
    ratio: float | str | None = None,
    keep: Any = None,
    n_images: int = 1000,
    module: str | None = None,
    leaves: Sequence[str] = (),
    input_size: Any = None,
    outputs: str | None = None,
    device: str = "auto",
    batch_size: int = 100,
    quiet: bool = False,
    **options: Any,
) -> tuple[nn.Module, Summary]:
    """Remove whole channels of a network.

    Parameters
    ----------
    model : torch.nn.Module or torch.export.ExportedProgram
        Trained; it is not changed.
    images : Tensor or ndarray of shape (N, C, H, W), a Dataset, or an iterable of batches, optional
        As for :func:`decomp.compress`. Without them only criteria of the weights can be used, and the closeness of the
        outputs is not known.
    criterion : str
        One of :data:`decomp.criteria.names.CRITERIA`: the channels with the lowest numbers go first.
    speedup : float or str, optional
        Cost of the original over that of the result, at least: ``2`` or ``'2x'``.
    ratio : float or str, optional
        Instead: share of the channels that go, in [0, 1).
    keep : path, optional
        Instead: a plan, the prune.json of a run of the same network.
    n_images : int
        Upper limit of the images, a tenth of them held out.
    module : str, optional
        Path of the submodule that is pruned; it must take the images.
    leaves : sequence of str
        Paths of modules, in that submodule, that are not traced and stay as they are.
    input_size : str or sequence of int, optional
        ``(3, 224, 224)``, ``'224'`` or ``'28x28'``: needed without images where the network does not say it.
    outputs : {'scores', 'values'}, optional
        Meaning of rows of numbers that the network returns; see :func:`decomp.compress`.
    device : {'auto', 'cpu', 'cuda'}
    batch_size : int
        Images at a time.
    quiet : bool
        Without lines, which are written to standard error.
    **options
        Other arguments of :func:`decomp.pipelines.stages.prune.prune`: ``coupled``, ``cost``, ``ranking``, ``skip``,
        ``multiple``, ``bias``, ``recalibrate_bn``, ...

    Returns
    -------
    network : torch.nn.Module
        In evaluation mode, of the same class, device, precision and memory layout as `model`, with narrower layers and
        batch normalisations, where its modules can be exchanged in a copy of it; otherwise a traced network.
        :func:`decomp.save` keeps it.
    report : decomp.pipelines.reporting.summary.Summary
        Costs, closeness of the outputs and a table of layers; ``print(report)``, or display it in a notebook.

    Raises
    ------
    DecompError
        UsageError for a value that is not allowed, or where images are missing, before any work; others of
        decomp.errors.

    Examples
    --------
    >>> network, report = decomp.prune(model, criterion="l1", speedup=2, input_size=(3, 224, 224))  # doctest: +SKIP
    """
    # A caller's inference mode would forbid the derivatives that the criterion taylor takes.
    with said_for_python(ARGUMENTS), torch.inference_mode(False):
        original = module_of(model)
        _check_options(options)
        plan = None if keep is None else read_plan(keep)
        chosen = prune_options(plan, criterion=criterion, speedup=speedup, ratio=ratio, **options)
        if images is None and NEEDS[chosen.criterion] in ("images", "loss") and plan is None:
            fix = "give images, or take a criterion of the weights, such as l1"
            raise UsageError("images", f"the criterion {chosen.criterion} needs some", got="none", fix=fix)
        if images is None and chosen.bias == "mean":
            fix = "give images, or take bias='constant'"
            raise UsageError("images", "the means of dropped channels are taken from some", got="none", fix=fix)
        target, reporter, loaded = pick_device(device), Reporter(quiet=quiet), loaded_copy(original)
        n_images = parse.number("--images", int, LEAST)(n_images)
        source = None
        if images is not None:
            source = given.source_of(images, n_images, input_size=input_size, seed=chosen.seed)
            if len(source.train) < LEAST:
                rule, fix = f"there must be at least {LEAST}, as one is held out", "give more images, or none"
                raise UsageError("images", rule, got=len(source.train), fix=fix)
        shape = _shape(original, loaded, input_size) if source is None else source.input_shape
        found = unfolded(loaded.module, loaded.name, shape, part=module, leaves=leaves)
        found.network.to(target)
        prepared = None
        if source is not None:
            asked = FreezeOptions(
                model=loaded.name, data=given.NAME, part=module, leaves=tuple(leaves), outputs=outputs
            )
            prepared = _images(found, loaded, source, n_images, asked, target, batch_size, chosen.seed)
        pruned = remove(found, chosen, plan, images=prepared, device=target, reporter=reporter)
        fidelity = _fidelity(found, pruned, prepared)
        found.network.cpu(), pruned.network.cpu()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="decomp-"))) / "network"
            emit(
                found, pruned.network, folder, changed=pruned.changed, planned=pruned.planned,
                meta={"model": loaded.name, "prune": chosen.to_json()}, part=module, leaves=leaves,
            )  # fmt: skip
            whole = folder / network_file.WITH_BATCHNORM
            place = whole if whole.is_dir() else folder
            network, reason = in_class_of(loaded.module, place)
            attach_record(network, network_file.read_structure(place))
            notes = [*pruned.notes, *left_alone_lines(pruned.left_alone), reason or unused_work(network, place)]
        notes = [python_words(note, ARGUMENTS) for note in notes if note]
        report = replace(_report(found, pruned, chosen, loaded.name, fidelity, notes), part=module)
        return as_it_came(network, original), report


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options that there are not, with the closest one."""
    own = [name for name in inspect.signature(prune).parameters if name not in ("model", "options")]
    known = list(dict.fromkeys([*own, *(entry.name for entry in fields(PruneOptions))]))
    for name in options:
        if name not in known:
            close = {"part": "did you mean module", "leaf": "did you mean leaves"}.get(name) or near_miss(name, known)
            raise UsageError(name, "is no option of prune", fix=close or f"there are {', '.join(known)}")


def _shape(original: nn.Module, loaded: LoadedModel, input_size: Any) -> tuple[int, int, int]:
    """(C, H, W) of an image where none is given: as asked, or as the network says."""
    record = getattr(original, RECORD, None) or getattr(original, "meta", {}).get(RECORD) or {}
    own = (getattr(original, "pretrained_cfg", None) or {}).get("input_size")  # of networks of timm
    size = input_size or record.get("input_shape") or own
    if size is None:
        rule = "is needed: the cost depends on the size of the images, which the network does not say"
        raise UsageError("input_size", rule, fix="give for example input_size=(3, 224, 224), or images")
    return models.full_shape(loaded.name, models.parse_input_size(size), loaded.module)


def _images(
    found: Unfolded, loaded: LoadedModel, source: ImageSource, most: int, asked: FreezeOptions, device: torch.device,
    size: int, seed: int,
) -> Images:  # fmt: skip
    """At most so many images, drawn where there are more, with the network's outputs described and measured on them."""
    _, _, outputs = prepare(loaded, source, asked)
    order = draw_images(source, most, seed, least=LEAST)
    n = len(order)
    fitted = fitted_images(n)

    def part(start: int, stop: int) -> torch.Tensor:
        return source.train.images(order[start:stop])

    spread = Spread(outputs)
    with torch.no_grad():
        for start in range(0, n, size):
            batch = to_device(part(start, min(start + size, n)), device)
            spread.add(named_tensors(found.network(batch), len(batch)))
    return batched(part, fitted, n, size, device, spread.measured(), seed)


def _fidelity(found: Unfolded, pruned: Pruned, images: Images | None) -> dict[str, Any]:
    """Closeness of the outputs on the held-out images; empty without images."""
    if images is None:
        return {}
    result = compared(found.network, pruned.network, images.held_out(), images.outputs).result()
    words = closeness_words(result, "held-out images")
    return {**result, "words": "\n".join([words, *images.outputs.notes()])}


def _report(
    found: Unfolded, pruned: Pruned, options: PruneOptions, name: str, fidelity: dict[str, Any], notes: list[str]
) -> Summary:
    shape = found.graph.input_shape
    before, after = cost(found.network, shape), cost(pruned.network, shape)
    return Summary(
        model=name, speedup=options.speedup, macs_before=before.macs, macs_after=after.macs,
        params_before=before.params, params_after=after.params, fidelity=fidelity,
        layers=layer_summaries(found.network, pruned.network, shape), notes=notes, network="pruned",
    )  # fmt: skip
