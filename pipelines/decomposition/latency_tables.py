"""Table of times of a network: its layers at all sizes in one runtime, and the rest of the network."""

from __future__ import annotations

from decomp.cost.chain import chain, geometry_of
from decomp.cost.latency_model import SELECT, FactorKind, LatencyCost, Table, factor_grids
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph

from ..console.reporter import Reporter
from .timings import Timings


def latency_cost(timings: Timings, graph: NetworkGraph, reporter: Reporter) -> LatencyCost:
    """Cost model from times of all factors that the plan can use, and of the whole network."""
    tables: dict[tuple[str, str], Table] = {}
    selecting: dict[str, float] = {}
    fitted = [layer for layer in graph.layers if layer.fitted]
    block = timings.block()
    if block > 1:
        reporter.step(
            f"{timings.runtime.name} computes channels in blocks of {block}: widths between cost as the next one"
        )
    with reporter.progress(
        len(fitted), f"measuring convolutions, batch size {timings.batch_size}", "layers"
    ) as progress:
        for layer in fitted:
            for name, grid in factor_grids(layer, graph.module.get_submodule(layer.name), block).items():
                times = timings.table(grid.kind, grid.inputs, grid.outputs)
                tables[layer.name, name] = grid.inputs, grid.outputs, times
            if _may_select(layer):
                one = timings.factor(FactorKind(SELECT, in_hw=layer.in_hw), layer.in_channels, layer.in_channels)
                selecting[layer.name] = one * len(layer.calls)
            timings.save()
            progress.update(1)
    shape, names = (timings.batch_size, *graph.input_shape), [layer.name for layer in fitted]
    return LatencyCost(graph, tables, *_parts(timings, graph, names, shape), block, selecting)


def _may_select(layer: Layer) -> bool:
    """Whether a selection of channels stands in front of a convolution that reads fewer than are there."""
    space = layer.input_space
    return layer.kind == "conv" and space is not None and space.sampled and "prune" not in layer.left_alone


def _parts(
    timings: Timings, graph: NetworkGraph, names: list[str], shape: tuple[int, ...]
) -> tuple[dict[str, float], float]:
    """Milliseconds of each fitted layer in the original, and of the rest.

    In eager mode both are measured while it runs. The parts of a compiled network are in the proportions of eager mode.
    Otherwise a layer takes as long as its convolutions in context, and the rest is what the network takes beside.
    """
    if not timings.in_context:
        parts, rest = timings.within(graph.module, names, shape)
        if timings.runtime.name == "eager":
            return parts, rest
        share = timings.compare({"whole": graph.module}, shape)["whole"] / (sum(parts.values()) + rest)
        return {name: time * share for name, time in parts.items()}, rest * share
    parts = {}
    for name in names:
        layer, geometry = graph.layer(name), geometry_of(graph.module.get_submodule(name))
        links = chain(layer, layer.in_channels, layer.out_channels, geometry=geometry)
        times = [
            timings.factor(FactorKind.of(layer, link), int(link.in_channels), int(link.out_channels)) for link in links
        ]
        parts[name] = sum(times) * len(layer.calls)
    timings.save()
    whole = timings.compare({"whole": graph.module}, shape)["whole"]
    share = min(1.0, whole / sum(parts.values()))
    return {name: time * share for name, time in parts.items()}, max(0.0, whole - sum(parts.values()))
