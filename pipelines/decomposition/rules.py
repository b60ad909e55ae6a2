"""Rules of a plan from options: layers that keep their shape, largest speed-up of a layer, multiples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from decomp.allocation.rules import Rules
from decomp.errors import UsageError, near_miss
from decomp.graph.network_graph import NetworkGraph

from ..console.options import DecomposeOptions
from ..console.words import listed


@dataclass(frozen=True)
class LayerRules:
    """Rules of the search, and the option by which each layer is skipped.

    Attributes
    ----------
    rules : decomp.allocation.rules.Rules
    skipped : dict of str to str
        Layer to option.
    """

    rules: Rules
    skipped: Mapping[str, str] = field(default_factory=dict)

    def of_layer(self, name: str) -> dict[str, str | float]:
        """``limits`` of one layer in plan.json."""
        limits: dict[str, str | float] = {}
        if name in self.skipped:
            limits["skip"] = self.skipped[name]
        if math.isfinite(self.rules.max_layer_speedup):
            limits["max_speedup"] = self.rules.max_layer_speedup
        return limits


def layer_rules(
    graph: NetworkGraph, *, skip: Sequence[str], keep_first: bool, max_layer_speedup: float | None, multiple: int
) -> LayerRules:
    """Rules for the layers of a network.

    A skipped layer keeps its shape: it is not factored, reads all its inputs and writes all its outputs. Its weights
    are still fitted to its changed inputs.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    skip : sequence of str
        Names of layers, or patterns with * and ?.
    keep_first : bool
        Skip the first convolution.
    max_layer_speedup : float, optional
    multiple : int

    Raises
    ------
    UsageError
        For a name that no layer has; with the nearest one.
    """
    names = [layer.name for layer in graph.layers]
    skipped: dict[str, str] = {}
    for pattern in skip:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise UsageError(
                "--skip", "must be a layer's name or match some with * and ?", got=repr(pattern),
                fix=near_miss(pattern, names) or f"there are {listed(names, 12)}",
            )  # fmt: skip
        for name in matches:
            skipped.setdefault(name, f"--skip {pattern}")
    if keep_first:
        first = next((layer.name for layer in graph.layers if layer.kind == "conv"), None)
        if first is not None:
            skipped.setdefault(first, "--keep-first")
    return LayerRules(Rules(multiple, frozenset(skipped), max_layer_speedup or math.inf), skipped)


def plan_rules(options: DecomposeOptions, graph: NetworkGraph) -> LayerRules:
    """Rules that the options give for the layers of a network; errors as for :func:`layer_rules`."""
    return layer_rules(
        graph, skip=options.skip, keep_first=options.keep_first, max_layer_speedup=options.max_layer_speedup,
        multiple=options.multiple,
    )  # fmt: skip
