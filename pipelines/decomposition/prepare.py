"""Preparation of a network for freezing: traced, batch normalisations folded, its outputs described."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from decomp.errors import DecompError, NumericalError, UsageError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import decide_kinds
from decomp.execution.outputs import difference, named_tensors
from decomp.graph.autocast import without_autocast
from decomp.graph.call_order import bring_calls_together, put_in_order
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn

from ...data.models import LoadedModel
from ...data.splits import ImageSource
from ..console.options import FreezeOptions
from ..run.loading import part_of
from .first_passes import TOLERANCE, not_as_traced, outputs_of, require_repeatable
from .refusals import does_not_run, not_finite


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
    DecompError
        It gives other outputs for the same images, or does so once it is traced.
    """
    module = part_of(loaded.module, options.part, loaded.name)

    def trace_with(leaves: Sequence[str]) -> fx.GraphModule:
        return trace(module, loaded.name, [*options.leaves, *leaves], source.input_shape)

    network = trace_with([])
    images = source.train.images(torch.arange(min(8, len(source.train))))
    bad = int((~torch.isfinite(images)).sum())
    if bad:
        got = f"{bad} NaN or infinite values in the first {len(images)}"
        raise NumericalError(source.name, "the images must be finite", got=got, fix="check the images")
    try:
        with torch.no_grad(), without_autocast():
            given = module(images.clone())  # which forward may change
    except Exception as error:
        raise does_not_run(loaded.name, module, images, error) from error
    before = named_tensors(given, len(images), loaded.name)
    if not all(torch.isfinite(value).all() for value in before.values()):
        raise not_finite(loaded.name, module, images, before)
    require_repeatable(module, images, before, loaded.name)
    off = difference(before, outputs_of(network, images, loaded.name))
    if off > TOLERANCE:
        raise not_as_traced(module, network, images, off, loaded.name, trace_with)
    folded = fold_bn(network)
    order_before = bring_calls_together(network)
    worst = difference(before, outputs_of(network, images, loaded.name))
    if order_before is not None and worst > TOLERANCE:
        # Something shares memory in a way that is not known: slower, but as it was given.
        put_in_order(network, order_before)
        worst = difference(before, outputs_of(network, images, loaded.name))
    if worst > TOLERANCE:
        raise DecompError(
            loaded.name, f"folding batch normalisation must keep the outputs to {TOLERANCE:g}", got=f"{worst:.2g}"
        )
    _require_gradient(network, images[:1], loaded.name)
    n_classes = source.n_classes if source.train.has_labels else None
    kinds = decide_kinds(before, module, asked=options.outputs, n_classes=n_classes)
    return network, folded, Outputs(kinds)


def _require_gradient(network: fx.GraphModule, images: Tensor, name: str) -> None:
    """Refuse a network of which no output has a gradient: none can say how much an error of a layer changes it.

    Raises
    ------
    UsageError
    """
    if not all(weight.requires_grad for weight in network.parameters()):
        return  # nothing is known of the layers behind a step without a gradient
    with torch.enable_grad(), without_autocast():
        outputs = named_tensors(network(images.clone().requires_grad_()), len(images), name)
    if not any(value.requires_grad for value in outputs.values()):
        raise UsageError(
            name, "must be real numbers that change little when the weights do",
            got="an output without a gradient (as of a comparison)",
            fix="leave the last step out of the network, so that it returns the numbers from which that is made",
        )  # fmt: skip
