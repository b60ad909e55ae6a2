"""Report lines of a plan and of its solved layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decomp.allocation.choices import number
from decomp.allocation.plan import STEP_TABLE, STEPS, LayerPlan, Plan, columns, widths_written
from decomp.cost.models import counted_model
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph

from ..console.layer_table import LayerSummary
from ..console.reporter import Reporter
from ..measure.closeness import percent
from ..measure.fidelity import FEW_IMAGES
from .session import SurveyedRun

#: Fits to half of the images are warned of where their error on the other half is above so many times their own.
FAR = 2.0


def announce(plan: Plan, graph: NetworkGraph, reporter: Reporter) -> None:
    """Say what the plan reaches; as details the sizes of each layer, and the steps that cannot be applied and why."""
    width = max(len(layer.name) for layer in graph.layers)
    there = [item for item in plan.layers if item.layer in {layer.name for layer in graph.layers}]
    changed = sum(item.treated for item in there)
    without = f", without the blocks {', '.join(plan.left_out)}" if plan.left_out else ""
    reporter.step(f"plan: {plan.words()}; changes {changed} of {len(there)} layers{without}")
    for item in there:
        reasons = reason_words(item.left_alone)
        option = f"  [{item.limits['skip']}]" if "skip" in item.limits else ""
        reporter.detail(f"  {item.layer:<{width}}  {item.words()}{option}" + (f"  ({reasons})" if reasons else ""))
    for name in graph.functional_convs:
        reporter.detail(f"  {name:<{width}}  unchanged: a functional convolution, not a module")


def reason_words(left_alone: Mapping[str, str]) -> str:
    """The steps that cannot be applied to a layer, those of one reason together: ``no spatial, channel: ...``."""
    steps_by_reason: dict[str, list[str]] = {}
    for step, why in left_alone.items():
        steps_by_reason.setdefault(why, []).append(step)
    if len(steps_by_reason) == 1 and len(left_alone) == len(STEPS):
        return f"left alone: {next(iter(steps_by_reason))}"
    return "; ".join(f"no {', '.join(steps)}: {why}" for why, steps in steps_by_reason.items())


def planned_layers(plan: Plan, surveyed: SurveyedRun) -> list[LayerSummary]:
    """Each layer before and after a plan; depthwise convolutions are counted with the layer that reads them."""
    graph, plans = surveyed.graph, {item.layer: item for item in plan.layers}
    models = [
        counted_model(name, graph, surveyed.narrowed.macs_by_layer, surveyed.opened.cost) for name in ("macs", "params")
    ]
    written, layers = widths_written(graph, plans), []
    for layer in graph.layers:
        item = plans[layer.name]
        reads, writes = (columns(layer, item.keep), layer.in_channels), (written[layer.name], layer.out_channels)
        ranks: dict[str, tuple[int, int]] = {
            step.name: (size, step.largest(layer))
            for step in STEP_TABLE
            if step.is_rank and (size := getattr(item, step.size)) is not None
        }
        before = [round(number(model.layer(layer, reads[1], writes[1]))) for model in models]
        after = [round(number(model.layer(layer, reads[0], writes[0], *item.ranks))) for model in models]
        if any(before):
            costs = (before[0], after[0], before[1], after[1])
            layers.append(LayerSummary(layer.name, layer.kind, reads, writes, ranks, *costs))
    modules, names = dict(graph.module.named_modules()), {layer.name for layer in graph.layers}
    for name, macs in surveyed.narrowed.macs_by_layer.items():
        if name not in names:
            params = sum(p.numel() for p in modules[name].parameters()) if name in modules else 0
            layers.append(LayerSummary.unchanged(name, macs, params))
    return layers


def more_images(reports: Sequence[Mapping[str, Any]], n_fit: int, said: str = "") -> list[str]:
    """A line on what more images would bring, by the fits of either half of them; none where there are enough images.

    A half has the mean error f on itself and g on the other half. The error on new images, taken as a + b/n for n
    fitted images, and as far above a as the error on the fitted ones is below it, is then (3g + f)/4 with all images,
    and (5g + 3f)/8 with twice as many. Both halves read what a network fitted to all images gives, so that errors which
    add up over the layers on new images are not in it.

    Parameters
    ----------
    reports : sequence of mapping
        Of :func:`decomp.solvers.solve_layer.solve_layer`.
    n_fit : int
        Fitted images.
    said : str
        Earlier lines. Where they say that the images are too few, this one does not warn again, and it is left out if
        the halves alone would not warn: it would seem to say the opposite.
    """
    halves = [report["halves"] for report in reports if "halves" in report]
    fitted, other = (sum(half[name] for half in halves) for name in ("fitted", "other"))
    if not other > 0:
        return []
    now, then = (3 * other + fitted) / 4, (5 * other + 3 * fitted) / 8
    words = (
        f"with twice as many images the errors of the layers on new images would be about {percent(1 - then / now)} "
    )
    words += f"lower, each layer by itself, by fits to either half of the {n_fit:,} fitted ones"
    few, warned = other > FAR * fitted, FEW_IMAGES in said
    if warned and not few:
        return []
    return [f"warning: few images for this network: {words}" if few and not warned else words]


def layer_words(layer: Layer, sizes: LayerPlan, report: Mapping[str, Any]) -> str:
    """One line about a solved layer: its sizes, and the error of its outputs after the last step."""
    errors = list(report["errors"].values())[-1]
    words = f"{layer.name}: {sizes.words()}; error of its outputs {100 * errors['fitted']:.2f} %"
    return words + (f", on held-out images {100 * errors['held_out']:.2f} %" if "held_out" in errors else "")
