"""Refusals of networks that cannot be frozen, and of values that are not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from decomp.errors import NumericalError, UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.ways_out import part_that_works
from decomp.problem.finite import count_not_finite

from ..console.options import FreezeOptions


def no_layer(graph: NetworkGraph, options: FreezeOptions) -> UsageError:
    """The error that says why no layer of the network can be made cheaper."""
    modules = dict(graph.module.named_modules())
    kinds = Counter(type(module).__name__ for module in modules.values() if isinstance(module, nn.modules.conv._ConvNd))
    reasons = [f"{count} are of class {kind}" for kind, count in kinds.items()]
    if graph.functional_convs:
        reasons.append(f"{len(graph.functional_convs)} have weights that are computed from the images")
    if not reasons:
        return UsageError(
            options.model, "has neither a convolution nor a linear layer", fix="give a convolutional network"
        )
    within = f" without --leaf {options.leaves[0]}" if options.leaves else ""
    rule = f"must have convolutions of class Conv2d outside of modules that are left alone, but {', '.join(reasons)}"
    return UsageError(options.model, rule, fix=f"give another network or part of it{within}")


def does_not_run(name: str, module: nn.Module, images: Tensor, error: Exception) -> UsageError:
    """The error that says why a network does not run on images (N, C, H, W), and what may be the matter with them."""
    given, fix = tuple(images.shape[1:]), "give --input-size or other --data"
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    takes = None if first is None else first.in_channels
    if takes is not None and takes == given[2] != given[0]:
        fix = f"its first convolution takes {takes} channels: put them in front, images.permute(0, 3, 1, 2)"
    elif {takes, given[0]} == {1, 3}:
        fix = f"its first convolution takes {takes} channels: give --input-size {takes}x{given[1]}x{given[2]}"
    elif takes == given[0] and (part := part_that_works(module, given)) is not None:
        fix += (
            f", treat its part {part} alone (--module {part}), or give a module that hands it a batch in its own form"
        )
    reason, shape = str(error).strip().split("\n")[0], "x".join(map(str, given))
    return UsageError(name, f"does not run on images of {shape} ({reason})", fix=fix)


def not_finite(name: str, module: nn.Module, images: Tensor, outputs: Mapping[str, Tensor]) -> NumericalError:
    """The error that names the first layer, or else the first output, that is not finite, and how many of its values.

    Parameters
    ----------
    name : str
        Of the network.
    module : torch.nn.Module
    images : torch.Tensor, shape (N, C, H, W)
    outputs : mapping of str to torch.Tensor
        Of the network for these images; one of them at least is not finite.
    """
    found: list[tuple[str, int, int]] = []

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
    of_outputs = [(f"output {path}", int((~torch.isfinite(y)).sum()), y.numel()) for path, y in outputs.items()]
    layer, bad, total = found[0] if found else next(entry for entry in of_outputs if entry[1])
    got = f"{bad} of {total} values NaN or infinite on the first {len(images)} images"
    return NumericalError(f"{name}, {layer}", "the responses must be finite", got=got, fix="check the weights")


def require_finite(values: Tensor, thing: str, what: str, start: int, stop: int) -> None:
    """Refuse values of images ``start ... stop - 1`` of which some are NaN or infinite.

    Parameters
    ----------
    values : torch.Tensor
    thing, what : str
        The layer or output, and what the values are there.
    start, stop : int

    Raises
    ------
    NumericalError
    """
    bad = count_not_finite(values)
    if bad:
        got = f"{bad} NaN or infinite values in images {start}..{stop - 1}"
        raise NumericalError(thing, f"{what} must be finite", got=got, fix="check the weights and the images")
