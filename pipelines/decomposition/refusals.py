"""Error that says why no convolution of a network can be made cheaper."""

from __future__ import annotations

from collections import Counter

from torch import nn

from decomp.errors import UsageError
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
