"""Choices of the search: allowed sizes of each layer, their losses and costs, and which layers share a width.

The search (:mod:`decomp.allocation.dynamic_programming`, :mod:`decomp.allocation.local_search`) reads the network
only through :class:`Choices`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from decomp.allocation.interfaces import CostModel, Graph, Layer
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import RANKS, STEP_TABLE, LayerPlan, columns, widths_written
from decomp.allocation.rules import Rules
from decomp.allocation.sizes import allowed_sizes, fitting_multiple, on_grid

LayerPlans: TypeAlias = dict[str, LayerPlan]
Ranks: TypeAlias = "tuple[int | None, ...]"


class Choices:
    """Everything that may be chosen for one network.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    curves : dict of str to LayerCurves
        One for each layer of the graph.
    cost : CostModel
    rules : Rules

    Attributes
    ----------
    sizes : dict of (str, str) to numpy.ndarray
        Allowed sizes, ascending, by layer and field of the plan (keep, spatial_rank, channel_rank).
    readers : dict of str to Layer
        The layer that reads a layer's outputs alone and can narrow them, by the name of the writing layer.
    """

    def __init__(self, graph: Graph, curves: Mapping[str, LayerCurves], cost: CostModel, rules: Rules) -> None:
        self.graph, self.cost, self.rules = graph, cost, rules
        self.curves = {layer.name: self._usable(layer, curves[layer.name]) for layer in graph.layers}
        self.readers: dict[str, Layer] = {}
        self.sizes: dict[tuple[str, str], NDArray[np.int64]] = {}
        for layer in graph.layers:
            producer = None if layer.input_space is None else layer.input_space.producer
            if producer is not None and self.curves[layer.name].prune is not None:
                self.readers[producer] = layer
            channels = {step.size: step.channels(layer) for step in STEP_TABLE}
            for name, curve in self.curves[layer.name].by_size():
                if curve is not None:
                    multiple = fitting_multiple(channels[name], rules.multiple)
                    self.sizes[layer.name, name] = allowed_sizes(len(curve) - 1, multiple)
        self._floors: dict[str, float] = {}
        for layer in graph.layers:
            whole = number(cost.layer(layer, layer.in_channels, layer.out_channels))
            self._floors[layer.name] = whole / rules.max_layer_speedup * (1 - 1e-9)
        self._costs: dict[tuple[Any, ...], float] = {}
        self._tables: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}

    def with_any_size(self) -> Choices:
        """The same without the rule of multiples."""
        return Choices(self.graph, self.curves, self.cost, replace(self.rules, multiple=1))

    def _usable(self, layer: Layer, curves: LayerCurves) -> LayerCurves:
        if layer.name in self.rules.skip:
            return LayerCurves()
        space = layer.input_space
        if space is not None and not self.rules.skip.isdisjoint((space.producer, *space.carriers)):
            return replace(curves, prune=None)
        return curves

    # -- layers that share a width -------------------------------------------------------------------------

    def width_out(self, plans: LayerPlans, layer: Layer) -> int:
        """Outputs of a layer that are still read."""
        reader = self.readers.get(layer.name)
        keep = None if reader is None else plans[reader.name].keep
        return layer.out_channels if keep is None else keep

    def chains(self) -> Iterator[list[Layer]]:
        """Layers that share widths, each list from the first that writes to the last that reads."""
        narrowed = {layer.name for layer in self.readers.values()}
        for layer in self.graph.layers:
            if layer.name not in narrowed:
                chain = [layer]
                while chain[-1].name in self.readers:
                    chain.append(self.readers[chain[-1].name])
                yield chain

    # -- costs and losses ----------------------------------------------------------------------------------

    def total_cost(self, plans: LayerPlans) -> float:
        """Cost of the whole network."""
        return self.cost.rest + sum(self.layer_cost(plans, layer) for layer in self.graph.layers)

    def layer_cost(self, plans: LayerPlans, layer: Layer) -> float:
        """Cost of one layer."""
        plan = plans[layer.name]
        widths = columns(layer, plan.keep), self.width_out(plans, layer)
        key = layer.name, widths, plan.ranks
        if key not in self._costs:
            self._costs[key] = number(self.cost.layer(layer, *widths, *plan.ranks))
        return self._costs[key]

    def local_cost(self, plans: LayerPlans, name: str) -> float:
        """Cost of a layer and of the one that writes its input: all that its sizes can change."""
        layer = self.graph.layer(name)
        total = self.layer_cost(plans, layer)
        if plans[name].keep is not None and layer.input_space is not None and layer.input_space.producer is not None:
            total += self.layer_cost(plans, self.graph.layer(layer.input_space.producer))
        return total

    def too_cheap(self, plans: LayerPlans, layer: Layer) -> bool:
        """Whether a layer costs less than ``max_layer_speedup`` allows."""
        return bool(self.layer_cost(plans, layer) < self._floors[layer.name])

    def error(self, plans: LayerPlans) -> float:
        """The objective: summed losses of all layers."""
        return sum(self.curves[name].error(plan) for name, plan in plans.items())

    # -- sizes ---------------------------------------------------------------------------------------------

    def next_size(self, layer: str, name: str, size: int) -> int | None:
        """The next allowed size of a layer, or None at the largest."""
        sizes = self.sizes[layer, name]
        place = int(np.searchsorted(sizes, size, side="right"))
        return int(sizes[place]) if place < len(sizes) else None

    def at_most(self, layer: str, name: str, size: float) -> int:
        """The largest allowed size up to ``size``; the smallest where none is."""
        sizes = self.sizes[layer, name]
        return int(sizes[max(0, int(np.searchsorted(sizes, size, side="right")) - 1)])

    def off_multiple(self, plan: LayerPlan) -> list[str]:
        """Fields of a layer plan whose sizes are not among the allowed ones."""
        sizes = [(name, getattr(plan, name)) for name, _ in self.curves[plan.layer].by_size()]
        return [name for name, size in sizes if size is not None and size not in self.sizes[plan.layer, name]]

    def widths(self, layer: Layer) -> list[int] | list[None]:
        """Grid of the widths of the space a layer reads; [None] where it cannot be narrowed."""
        sizes = self.sizes.get((layer.name, "keep"))
        return [None] if sizes is None else on_grid(sizes)

    def ranks(self, layer: str) -> list[Ranks]:
        """All combinations of ranks on the grid, in the order of `RANKS`, None where a step is not applied."""
        grids: list[list[int | None]] = []
        for name in RANKS:
            sizes = self.sizes.get((layer, name))
            # A full rank costs more than the layer without the step.
            grids.append([None, *([] if sizes is None else on_grid(sizes if len(sizes) == 1 else sizes[:-1]))])
        return list(product(*grids))

    def table(self, layer: Layer) -> tuple[NDArray[Any], NDArray[Any]]:
        """Loss and cost of every choice for one layer.

        Returns
        -------
        error, cost : numpy.ndarray, shape (widths read, widths written, combinations of ranks)
            Cost relative to the original network; error infinite where the layer would become too cheap.
        """
        if layer.name not in self._tables:
            self._tables[layer.name] = self._table(layer)
        return self._tables[layer.name]

    def _table(self, layer: Layer) -> tuple[NDArray[Any], NDArray[Any]]:
        reader, curves, combinations = self.readers.get(layer.name), self.curves[layer.name], self.ranks(layer.name)
        widths_in, widths_out = self.widths(layer), [None] if reader is None else self.widths(reader)
        shape = len(widths_in), len(widths_out), len(combinations)
        a = np.array([columns(layer, w) for w in widths_in])[:, None]
        b = np.array([layer.out_channels if w is None else w for w in widths_out])[None, :]
        cost = np.empty(shape)
        for place, ranks in enumerate(combinations):
            cost[:, :, place] = self.cost.layer(layer, a, b, *ranks)
        pruned = np.array([curves.error(LayerPlan(layer.name, width)) for width in widths_in])
        ranked = np.array([curves.error(LayerPlan.of(layer.name, None, ranks)) for ranks in combinations])
        error = np.broadcast_to(pruned[:, None, None] + ranked, shape)
        error = np.where(cost < self._floors[layer.name], np.inf, error)
        return error, cost / self.cost.total


def number(cost: Any) -> float:
    """A cost for single sizes; cost models give a number then, not an array."""
    return cost


def plan_cost(graph: Graph, plans: Mapping[str, LayerPlan], cost: CostModel) -> float:
    """Cost of the whole network under layer plans, in the unit of the cost model."""
    width_out = widths_written(graph, plans)
    total = cost.rest
    for layer in graph.layers:
        plan = plans[layer.name]
        total += number(cost.layer(layer, columns(layer, plan.keep), width_out[layer.name], *plan.ranks))
    return total


def exact_spatial_rank(layer: Layer, plan: LayerPlan) -> int | None:
    """The spatial rank of a plan, at most the one that is exact for the channels that it reads, c·kh."""
    if plan.spatial_rank is None:
        return None
    return min(plan.spatial_rank, columns(layer, plan.keep) * layer.kernel[0])
