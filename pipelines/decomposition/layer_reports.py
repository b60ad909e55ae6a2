"""Report lines of a plan and of its solved layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decomp.allocation.plan import LayerPlan, Plan
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph

from ..console.reporter import Reporter


def announce(plan: Plan, graph: NetworkGraph, reporter: Reporter) -> None:
    """List before any work the sizes of each layer, and the steps that cannot be applied with their reasons."""
    width = max(len(layer.name) for layer in graph.layers)
    reporter.step(f"plan: {plan.words()}")
    for item in plan.layers:
        reasons = "; ".join(f"no {step}: {why}" for step, why in item.left_alone.items())
        option = f"  [{item.limits['skip']}]" if "skip" in item.limits else ""
        reporter.step(f"  {item.layer:<{width}}  {item.words()}{option}" + (f"  ({reasons})" if reasons else ""))
    for name in graph.functional_convs:
        reporter.step(f"  {name:<{width}}  unchanged: a functional convolution, not a module")


def layer_words(layer: Layer, sizes: LayerPlan, report: Mapping[str, Any]) -> str:
    """One line about a solved layer: its sizes, and the error of its responses after the last step."""
    errors = list(report["errors"].values())[-1]
    words = f"{layer.name}: {sizes.words()}; response error {errors['fitted']:.2%}"
    return words + (f", held out {errors['held_out']:.2%}" if "held_out" in errors else "")
