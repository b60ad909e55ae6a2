"""Errors that say why a network cannot be frozen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from decomp.errors import NumericalError, UsageError
from decomp.graph.network_graph import NetworkGraph

from ..console.options import FreezeOptions


def no_convolution(graph: NetworkGraph, options: FreezeOptions) -> UsageError:
    """The error that says why no convolution of the network can be made cheaper."""
    modules = dict(graph.module.named_modules())
    kinds = Counter(type(module).__name__ for module in modules.values() if isinstance(module, nn.modules.conv._ConvNd))
    reasons = [f"{count} are of class {kind}" for kind, count in kinds.items()]
    if graph.functional_convs:
        reasons.append(f"{len(graph.functional_convs)} have weights that are computed from the images")
    if not reasons:
        return UsageError(options.model, "has no convolution", fix="give a convolutional network")
    within = f" without --leaf {options.leaves[0]}" if options.leaves else ""
    rule = f"must have convolutions of class Conv2d outside of modules that are left alone, but {', '.join(reasons)}"
    return UsageError(options.model, rule, fix=f"give another network or part of it{within}")


def not_finite(name: str, module: nn.Module, images: Tensor) -> NumericalError:
    """The error that names the first layer whose responses are not finite, and how many of them."""
    found: list[tuple[str, int | str, int | str]] = []

    def hook_of(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append((layer, output.numel() - int(torch.isfinite(output).sum()), output.numel()))

        return hook

    leaves = [(path, child) for path, child in module.named_modules() if not list(child.children())]
    handles = [child.register_forward_hook(hook_of(path)) for path, child in leaves]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    layer, bad, total = found[0] if found else ("its output", "some", "all")
    got = f"{bad} of {total} values NaN or infinite on the first {len(images)} images"
    return NumericalError(f"{name}, {layer}", "the responses must be finite", got=got, fix="check the weights")
