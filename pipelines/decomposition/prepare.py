"""Preparation of a network for freezing: traced, batch normalisations folded, its outputs described."""

from __future__ import annotations

import torch
from torch import fx

from decomp.errors import DecompError, NumericalError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import decide_kinds
from decomp.execution.outputs import difference, named_tensors
from decomp.graph.call_order import bring_calls_together, put_in_order
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn

from ...data.models import LoadedModel
from ...data.splits import ImageSource
from ..console.options import FreezeOptions
from ..run.loading import part_of
from .refusals import does_not_run, not_finite

#: Largest difference that folding may make, relative to the largest output.
FOLD_TOLERANCE = 1e-4


def prepare(
    loaded: LoadedModel, source: ImageSource, options: FreezeOptions
) -> tuple[fx.GraphModule, list[tuple[str, str]], Outputs]:
    """Trace a network, fold its batch normalisations, and describe its outputs, all checked on a few images.

    Parameters
    ----------
    loaded : LoadedModel
    source : ImageSource
    options : FreezeOptions

    Returns
    -------
    network : torch.fx.GraphModule
    folded : list of (str, str)
        Paths of the convolutions and of the batch normalisations that went into them.
    outputs : Outputs
        With their kinds; the spreads are not measured yet.

    Raises
    ------
    NumericalError
        Images or responses are not finite; names the first layer.
    UsageError
        The network does not take the images, or returns what cannot be compared, see
        :func:`decomp.execution.outputs.named_tensors`.
    TraceError
        Its forward pass cannot be followed.
    """
    module = part_of(loaded.module, options.part, loaded.name)
    network = trace(module, loaded.name, options.leaves, source.input_shape)
    images = source.train.images(torch.arange(min(8, len(source.train))))
    bad = int((~torch.isfinite(images)).sum())
    if bad:
        got = f"{bad} NaN or infinite values in the first {len(images)}"
        raise NumericalError(source.name, "the images must be finite", got=got, fix="check the images")
    try:
        with torch.no_grad():
            given = module(images)
    except Exception as error:
        raise does_not_run(loaded.name, module, images, error) from error
    before = named_tensors(given, len(images), loaded.name)
    folded = fold_bn(network)
    order_before = bring_calls_together(network)
    with torch.no_grad():
        after = named_tensors(network(images), len(images), loaded.name)
        if order_before is not None and difference(before, after) > FOLD_TOLERANCE:
            # Something shares memory in a way that is not known: slower, but as it was given.
            put_in_order(network, order_before)
            after = named_tensors(network(images), len(images), loaded.name)
    if not all(torch.isfinite(value).all() for value in before.values()):
        raise not_finite(loaded.name, module, images, before)
    worst = difference(before, after)
    if worst > FOLD_TOLERANCE:
        raise DecompError(
            loaded.name, f"folding batch normalisation must keep the outputs to {FOLD_TOLERANCE:g}", got=f"{worst:.2g}"
        )
    n_classes = source.n_classes if source.train.has_labels else None
    kinds = decide_kinds(before, module, asked=options.outputs, n_classes=n_classes)
    return network, folded, Outputs(kinds)
