r"""From a target cost to ranks and widths, for all layers and steps at once.

Each layer i has curves: how much the network's output changes when it reads only k of its input channels, when
its kernel has spatial rank R, and when it has channel rank d (:mod:`decomp.solvers.output_curves`). The sizes minimise

.. math:: \sum_i \left( e^{prune}_i(k_i) + e^{spatial}_i(R_i) + e^{channel}_i(d_i) \right)
          \quad\text{subject to}\quad \mathrm{cost}(k, R, d) \le T.

One Lagrange multiplier for the whole network and dynamic programming along chains of coupled layers
(:mod:`decomp.allocation.dynamic_programming`) solve this exactly on a grid of sizes; single moves
(:mod:`decomp.allocation.local_search`) then fill what the
grid leaves of the target. Which cost it is, the search does not know.
"""

import numpy as np

from decomp.allocation import dynamic_programming as chains
from decomp.allocation import local_search as moves
from decomp.allocation.choices import Alternatives
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import LayerPlan, columns
from decomp.allocation.rules import Rules
from decomp.errors import TargetError

__all__ = ["Allocator", "LayerCurves", "Rules"]


class Allocator:
    """Chooses sizes for one network.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    curves : dict of str to LayerCurves
        One for each layer of the graph.
    cost : decomp.cost.models.MacsCost or another with its interface
    rules : Rules, optional
    """

    def __init__(self, graph, curves, cost, rules=Rules()):  # noqa: B008 (it is frozen)
        self.alternatives = Alternatives(graph, curves, cost, rules)
        self.graph, self.rules, self._cost, self._smallest = graph, rules, cost, None

    @property
    def total(self):
        """Cost of the original network."""
        return self._cost.total

    def joint(self, speedup):
        """Sizes that minimise the summed loss at ``total / speedup``.

        Returns
        -------
        dict of str to LayerPlan

        Raises
        ------
        TargetError
            If the target is out of reach; says the most that is.
        """
        self._require_reachable(speedup)
        target = self.total / speedup
        return self._finish(chains.solve_for_target(self.alternatives, target), target)

    def uniform(self, speedup):
        """The same share for every layer and step: each applied step keeps the same share of a layer's cost."""
        self._require_reachable(speedup)
        target, low, high = self.total / speedup, 0.0, 1.0
        found = self.smallest()
        for _ in range(60):
            share = (low + high) / 2
            items = self._uniform_items(share)
            if self.cost(items) > target:
                high = share
            else:
                low, found = share, items
        return self._finish(found, target)

    def with_energy(self):
        """The same network with the published rule's loss: −log of the kept share of energy, its product maximised.

        For curves of relative errors (1505.06798, section 4.1): Π (1 − e) over layers and steps is greatest where
        Σ −log(1 − e) is least.
        """

        def loss(curve):
            return None if curve is None else -np.log(np.clip(1 - curve, 1e-12, 1.0))

        own = self.alternatives.curves
        curves = {n: LayerCurves(loss(c.prune), loss(c.spatial), loss(c.channel)) for n, c in own.items()}
        return Allocator(self.graph, curves, self._cost, self.alternatives.rules)

    def cost(self, items):
        """Cost of the whole network."""
        return self.alternatives.total_cost(items)

    def error(self, items):
        """The objective."""
        return self.alternatives.error(items)

    def smallest(self):
        """The cheapest sizes there are."""
        if self._smallest is None:
            self._smallest = chains.solve(self.alternatives, np.inf)
        return {name: _copy(item) for name, item in self._smallest.items()}

    def most(self):
        """The greatest speed-up that any sizes give."""
        return self.total / self.cost(self.smallest())

    def _require_reachable(self, speedup):
        most = self.most()
        if speedup > most:
            raise TargetError(
                "speedup", f"at most {round_down(most)}x can be reached on this network", got=f"{speedup:g}x",
                fix="ask for less or allow more steps",
            )  # fmt: skip

    def _uniform_items(self, share):
        """Sizes at which each applied step keeps ``share`` of what the layer cost before it."""
        items = {}
        for layer in self.graph.layers:
            curves = self.alternatives.curves[layer.name]
            item = items[layer.name] = LayerPlan(layer.name)
            if curves.prune is not None:
                item.keep = self._size(layer, "keep", share * layer.input_space.width)
            width_in = columns(layer, item.keep)
            cost = self._cost.layer(layer, width_in, layer.out_channels)
            if curves.spatial is not None:
                rank = self._rank(layer, "spatial_rank", share * cost, (width_in, layer.out_channels))
                item.spatial_rank = rank
                cost = self._cost.layer(layer, width_in, layer.out_channels, rank)
            if curves.channel is not None:
                widths = width_in, layer.out_channels, item.spatial_rank
                item.channel_rank = self._rank(layer, "channel_rank", share * cost, widths)
        moves.keep_to_floors(self.alternatives, items)
        return items

    def _size(self, layer, name, size):
        return self.alternatives.at_most(layer.name, name, size + 1e-9)

    def _rank(self, layer, name, budget, widths):
        """The largest allowed rank with which the layer costs at most ``budget``."""
        sizes = self.alternatives.sizes[layer.name, name]
        costs = np.array([float(self._cost.layer(layer, *widths, int(size))) for size in sizes])
        return int(sizes[max(0, int((costs <= budget * (1 + 1e-12)).sum()) - 1)])

    def _finish(self, items, target):
        """Use what the grid leaves of the target, and put down why steps were not applied."""
        items = {name: _copy(item) for name, item in items.items()}
        if moves.fill(self.alternatives, items, target) < moves.LOWEST_SHARE * target:
            moves.release(self.alternatives, items, target)
        for layer in self.graph.layers:
            item = items[layer.name]
            item.left_alone = dict(layer.left_alone)
            item.off_multiple = self.alternatives.off_multiple(item)
            if item.keep is not None and item.keep == layer.input_space.width:
                item.keep = None
        return items


def round_down(speedup):
    """A speed-up with two decimals that is still reached, as text."""
    return f"{np.floor(speedup * 100) / 100:.2f}"


def _copy(item):
    return LayerPlan(item.layer, item.keep, item.spatial_rank, item.channel_rank)
