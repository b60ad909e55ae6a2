"""What may be chosen for a network: the sizes of each layer, what they lose, what they cost, and who is coupled.

The search (:mod:`decomp.allocation.dynamic_programming`, :mod:`decomp.allocation.local_search`) sees the network
through this alone.
"""

from dataclasses import replace

import numpy as np

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import LayerPlan, columns, limits, widths_written
from decomp.allocation.sizes import allowed_sizes, fitting_multiple, on_grid


class Alternatives:
    """The choices there are for one network.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    curves : dict of str to LayerCurves
        One for each layer of the graph.
    cost : decomp.cost.models.MacsCost or another with its interface
    rules : Rules

    Attributes
    ----------
    sizes : dict of (str, str) to numpy.ndarray
        Allowed sizes, ascending, by layer and name of the size (keep, spatial_rank, channel_rank).
    """

    def __init__(self, graph, curves, cost, rules):
        self.graph, self.cost, self.rules = graph, cost, rules
        self.curves = {layer.name: self._choosable(layer, curves[layer.name]) for layer in graph.layers}
        self.readers = {
            layer.input_space.producer: layer
            for layer in graph.layers
            if self.curves[layer.name].prune is not None and not layer.input_space.sampled
        }
        self.sizes = {}
        for layer in graph.layers:
            channels = {
                "keep": limits(layer)["prune"][1],
                "spatial_rank": min(layer.in_channels, layer.out_channels),
                "channel_rank": layer.out_channels,
            }
            for name, curve in self.curves[layer.name].by_size():
                if curve is not None:
                    multiple = fitting_multiple(channels[name], rules.multiple)
                    self.sizes[layer.name, name] = allowed_sizes(len(curve) - 1, multiple)
        self._floors = {
            layer.name: cost.layer(layer, layer.in_channels, layer.out_channels) / rules.max_layer_speedup * (1 - 1e-9)
            for layer in graph.layers
        }
        self._known, self._tables = {}, {}

    def with_any_size(self):
        """The same without the rule of multiples."""
        return Alternatives(self.graph, self.curves, self.cost, replace(self.rules, multiple=1))

    def _choosable(self, layer, curves):
        if layer.name in self.rules.skip:
            return LayerCurves()
        space = layer.input_space
        if space is not None and not self.rules.skip.isdisjoint((space.producer, *space.carriers)):
            return LayerCurves(None, curves.spatial, curves.channel)
        return curves

    # -- who is coupled with whom --------------------------------------------------------------------------

    def width_out(self, items, layer):
        """Outputs of a layer that are still read."""
        reader = self.readers.get(layer.name)
        kept = None if reader is None else items[reader.name].keep
        return layer.out_channels if kept is None else kept

    def producer(self, layer):
        """The layer whose outputs go when this one reads fewer."""
        return self.graph.layer(layer.input_space.producer)

    def chains(self):
        """Layers coupled by their widths, each list from the first that writes to the last that reads."""
        narrowed = {layer.name for layer in self.readers.values()}
        for layer in self.graph.layers:
            if layer.name not in narrowed:
                chain = [layer]
                while chain[-1].name in self.readers:
                    chain.append(self.readers[chain[-1].name])
                yield chain

    # -- what sizes cost and lose --------------------------------------------------------------------------

    def total_cost(self, items):
        """Cost of the whole network."""
        return self.cost.rest + sum(self.layer_cost(items, layer) for layer in self.graph.layers)

    def layer_cost(self, items, layer):
        """Cost of one layer."""
        item = items[layer.name]
        sizes = (
            layer.name,
            columns(layer, item.keep),
            self.width_out(items, layer),
            item.spatial_rank,
            item.channel_rank,
        )
        if sizes not in self._known:
            self._known[sizes] = self.cost.layer(layer, *sizes[1:])
        return self._known[sizes]

    def local_cost(self, items, name):
        """Cost of a layer and of whoever writes what it reads: all that its sizes can change."""
        layer = self.graph.layer(name)
        total = self.layer_cost(items, layer)
        if items[name].keep is not None and not layer.input_space.sampled:
            total += self.layer_cost(items, self.producer(layer))
        return total

    def too_cheap(self, items, layer):
        """Whether a layer costs less than ``max_layer_speedup`` allows."""
        return self.layer_cost(items, layer) < self._floors[layer.name]

    def error(self, items):
        """The objective."""
        return sum(self.curves[name].error(item) for name, item in items.items())

    # -- sizes ---------------------------------------------------------------------------------------------

    def next_size(self, name, size_name, size):
        """The next allowed size of a layer, or None at the largest."""
        sizes = self.sizes[name, size_name]
        place = int(np.searchsorted(sizes, size, side="right"))
        return int(sizes[place]) if place < len(sizes) else None

    def at_most(self, name, size_name, size):
        """The largest allowed size up to ``size``; the smallest where none is."""
        sizes = self.sizes[name, size_name]
        return int(sizes[max(0, int(np.searchsorted(sizes, size, side="right")) - 1)])

    def off_multiple(self, item):
        """Names of the sizes of a layer plan that are none of the allowed ones."""
        sizes = [(name, getattr(item, name)) for name, _ in self.curves[item.layer].by_size()]
        return [name for name, size in sizes if size is not None and size not in self.sizes[item.layer, name]]

    def widths(self, layer):
        """Grid of the widths of the space a layer reads; [None] where it cannot be narrowed."""
        sizes = self.sizes.get((layer.name, "keep"))
        return [None] if sizes is None else on_grid(sizes)

    def ranks(self, name):
        """All pairs (spatial rank, channel rank) on the grid, None where a step is not applied."""
        pairs = []
        for size_name in ("spatial_rank", "channel_rank"):
            sizes = self.sizes.get((name, size_name))
            # A full rank costs more than the step left out.
            pairs.append([None] + ([] if sizes is None else on_grid(sizes if len(sizes) == 1 else sizes[:-1])))
        return [(r, d) for r in pairs[0] for d in pairs[1]]

    def table(self, layer):
        """What every choice for one layer loses and costs.

        Returns
        -------
        error, cost : numpy.ndarray, shape (widths read, widths written, pairs of ranks)
            Cost relative to the original network; error infinite where the layer would become too cheap.
        """
        if layer.name not in self._tables:
            reader, curves, pairs = self.readers.get(layer.name), self.curves[layer.name], self.ranks(layer.name)
            widths_in, widths_out = self.widths(layer), [None] if reader is None else self.widths(reader)
            shape = len(widths_in), len(widths_out), len(pairs)
            a = np.array([columns(layer, w) for w in widths_in])[:, None]
            b = np.array([layer.out_channels if w is None else w for w in widths_out])[None, :]
            cost = np.empty(shape)
            for place, (r, d) in enumerate(pairs):
                cost[:, :, place] = self.cost.layer(layer, a, b, r, d)
            pruned = np.array([0.0 if w is None else curves.prune[w] for w in widths_in])
            ranked = np.array([curves.error(LayerPlan(layer.name, None, r, d)) for r, d in pairs])
            error = np.broadcast_to(pruned[:, None, None] + ranked, shape)
            error = np.where(cost < self._floors[layer.name], np.inf, error)
            self._tables[layer.name] = error, cost / self.cost.total
        return self._tables[layer.name]


def plan_cost(graph, items, cost):
    """Cost of the whole network under layer plans.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    items : dict of str to LayerPlan
    cost : decomp.cost.models.MacsCost or another with its interface

    Returns
    -------
    int or float
    """
    width_out = widths_written(graph, items)
    total = cost.rest
    for layer in graph.layers:
        item = items[layer.name]
        width_in = columns(layer, item.keep)
        total += cost.layer(layer, width_in, width_out[layer.name], item.spatial_rank, item.channel_rank)
    return total
