r"""From a target cost to ranks and widths, for all layers and steps at once.

Each layer i has curves: how much the network's output changes when it reads only k of its input channels, when
its kernel has spatial rank R, and when it has channel rank d (:mod:`decomp.sensitivity`). The sizes minimise

.. math:: \sum_i \left( e^{prune}_i(k_i) + e^{spatial}_i(R_i) + e^{channel}_i(d_i) \right)
          \quad\text{subject to}\quad \mathrm{cost}(k, R, d) \le T.

The cost of a layer depends on the width it reads and the width its reader leaves of its output, so layers are
coupled along chains of spaces. One Lagrange multiplier for the whole network and dynamic programming along each
chain solve this exactly on a grid of sizes; single steps then fill what the grid leaves of the target.
"""

from dataclasses import dataclass

import numpy as np

from decomp.cost import chain_macs
from decomp.errors import TargetError
from decomp.plan import LayerPlan, carrier_macs, layer_macs, plan_macs

GRID = 24
LOWEST_SHARE = 0.98


@dataclass
class LayerCurves:
    """Error of one layer against each size; index = size, index 0 unused; None where a step is not available.

    Attributes
    ----------
    prune, spatial, channel : numpy.ndarray or None
        Change of the network's output (or any other additive loss), falling to about 0 at the full size.
    """

    prune: np.ndarray | None = None
    spatial: np.ndarray | None = None
    channel: np.ndarray | None = None

    def error(self, item):
        """Loss of a layer plan under these curves."""
        total = 0.0
        for curve, size in (
            (self.prune, item.keep),
            (self.spatial, item.spatial_rank),
            (self.channel, item.channel_rank),
        ):
            if size is not None:
                total += curve[size]
        return total


class Allocator:
    """Chooses sizes for one network.

    Parameters
    ----------
    graph : decomp.graph.NetworkGraph
    curves : dict of str to LayerCurves
        One for each layer of the graph.
    per_layer : dict of str to int
        Counted multiply-accumulates of the original.
    """

    def __init__(self, graph, curves, per_layer):
        self.graph, self.curves, self.per_layer = graph, curves, per_layer
        self.total = sum(per_layer.values())
        self._reader_of = {
            layer.input_space.producer: layer
            for layer in graph.layers
            if layer.input_space is not None and not layer.input_space.sampled and curves[layer.name].prune is not None
        }
        self.chains = self._find_chains()

    # -- public ------------------------------------------------------------------------------------------

    def joint(self, speedup):
        """Sizes that minimise the summed loss at ``total / speedup`` multiply-accumulates.

        Returns
        -------
        dict of str to LayerPlan

        Raises
        ------
        TargetError
            If the target is out of reach; says the most that is.
        """
        target = self.total / speedup
        self._require_reachable(target, speedup)
        low, high = 0.0, 1e-12
        while self.macs(self._solve(high)) > target:
            low, high = high, high * 8
            if high > 1e12:
                return self._fill(self._smallest(), target)
        for _ in range(48):
            middle = np.sqrt(low * high) if low > 0 else high / 8
            if self.macs(self._solve(middle)) > target:
                low = middle
            else:
                high = middle
            if low > 0 and high / low < 1 + 1e-6:
                break
        return self._fill(self._solve(high), target)

    def uniform(self, speedup):
        """The same share for every layer and step: each applied step keeps the same share of a layer's cost."""
        target = self.total / speedup
        self._require_reachable(target, speedup)
        low, high = 0.0, 1.0
        for _ in range(60):
            share = (low + high) / 2
            if self.macs(self._uniform_items(share)) > target:
                high = share
            else:
                low = share
        return self._fill(self._uniform_items(low), target)

    def with_energy(self):
        """The same network with the published rule's loss: −log of the kept share of energy, its product maximised.

        For curves of relative errors (1505.06798, section 4.1): Π (1 − e) over layers and steps is greatest where
        Σ −log(1 − e) is least.
        """

        def loss(curve):
            return None if curve is None else -np.log(np.clip(1 - curve, 1e-12, 1.0))

        curves = {n: LayerCurves(loss(c.prune), loss(c.spatial), loss(c.channel)) for n, c in self.curves.items()}
        return Allocator(self.graph, curves, self.per_layer)

    def macs(self, items):
        """Multiply-accumulates of the whole network."""
        return plan_macs(self.graph, items, self.per_layer)

    def error(self, items):
        """The objective."""
        return sum(self.curves[name].error(item) for name, item in items.items())

    def most(self):
        """The greatest speed-up that any sizes give."""
        return self.total / self.macs(self._smallest())

    # -- reach -------------------------------------------------------------------------------------------

    def _smallest(self):
        items = {}
        for layer in self.graph.layers:
            curves = self.curves[layer.name]
            keep = 1 if curves.prune is not None else None
            options = [LayerPlan(layer.name, keep)]
            if curves.spatial is not None:
                options.append(LayerPlan(layer.name, keep, spatial_rank=1))
            if curves.channel is not None:
                options.append(LayerPlan(layer.name, keep, channel_rank=1))
                if curves.spatial is not None:
                    options.append(LayerPlan(layer.name, keep, 1, 1))
            width_out = self._kept_outputs(layer, 1)
            items[layer.name] = min(options, key=lambda item: layer_macs(layer, item, width_out))  # noqa: B023
        return items

    def _kept_outputs(self, layer, width):
        """``width`` if a reader can narrow this layer's outputs, otherwise all of them."""
        return width if layer.name in self._reader_of else layer.out_channels

    def _local_macs(self, items, name):
        """Cost of a layer and of whoever writes what it reads: all that its sizes can change."""
        layer = self.graph.layer(name)
        total = self._layer_macs(items, layer) + carrier_macs(layer, items[name], self.per_layer)
        if items[name].keep is not None and not layer.input_space.sampled:
            total += self._layer_macs(items, self.graph.layer(layer.input_space.producer))
        return total

    def _layer_macs(self, items, layer):
        reader = self._reader_of.get(layer.name)
        kept = None if reader is None else items[reader.name].keep
        return layer_macs(layer, items[layer.name], layer.out_channels if kept is None else kept)

    def _require_reachable(self, target, speedup):
        most = self.most()
        if target < self.macs(self._smallest()):
            untouched = [la.name for la in self.graph.layers if self.curves[la.name].prune is None
                         and self.curves[la.name].spatial is None and self.curves[la.name].channel is None]  # fmt: skip
            because = f" ({len(untouched)} layers are left alone, {untouched[0]} first)" if untouched else ""
            raise TargetError(
                "--speedup", f"at most {np.floor(most * 100) / 100:.2f}x can be reached on this network{because}",
                got=f"{speedup:g}x", fix="ask for less or allow more --steps",
            )  # fmt: skip

    # -- one multiplier, one chain at a time -------------------------------------------------------------

    def _find_chains(self):
        reader_of = self._reader_of
        narrowed = {layer.name for layer in reader_of.values()}
        chains = []
        for layer in self.graph.layers:
            if layer.name in narrowed:
                continue
            chain = [layer]
            while chain[-1].name in reader_of:
                chain.append(reader_of[chain[-1].name])
            chains.append(chain)
        return chains

    def _solve(self, multiplier):
        items = {}
        for chain in self.chains:
            items.update(self._solve_chain(chain, multiplier))
        return {layer.name: items[layer.name] for layer in self.graph.layers}

    def _solve_chain(self, chain, multiplier):
        """Dynamic programming over the widths of the spaces along a chain."""
        # A sampler may narrow what the first layer reads; its writer keeps its width.
        sampled = self.curves[chain[0].name].prune is not None
        widths_in = _sizes(chain[0].input_space.width, True) if sampled else [None]
        best, back = np.zeros(len(widths_in)), []
        for place, layer in enumerate(chain):
            widths_out = [None] if place + 1 == len(chain) else _sizes(chain[place + 1].input_space.width, True)
            table, choice = self._table(layer, widths_in, widths_out, multiplier)
            total = best[:, None] + table
            pick = total.argmin(axis=0)
            best = total[pick, np.arange(len(widths_out))]
            back.append((layer, widths_in, pick, choice))
            widths_in = widths_out
        items, column = {}, int(best.argmin())
        for layer, widths, pick, choice in reversed(back):
            row = pick[column]
            spatial, channel = choice[row][column]
            items[layer.name] = LayerPlan(layer.name, widths[row], spatial, channel)
            column = row
        return items

    def _table(self, layer, widths_in, widths_out, multiplier):
        """Least objective of one layer for each (width read, width left), and the ranks that give it."""
        curves = self.curves[layer.name]
        a = np.array([self._columns(layer, w) for w in widths_in], float)[:, None]
        b = np.array([layer.out_channels if w is None else w for w in widths_out], float)[None, :]
        pruned = [0.0 if w is None else curves.prune[w] for w in widths_in]
        best = np.full((len(widths_in), len(widths_out)), np.inf)
        choice = np.zeros(best.shape, int)
        options = self._options(curves)
        for number, (r, d) in enumerate(options):
            error = (0.0 if r is None else curves.spatial[r]) + (0.0 if d is None else curves.channel[d])
            macs = chain_macs(layer, a, b, r, d) if layer.fitted else self.per_layer[layer.name]
            value = error + multiplier * macs / self.total * np.ones_like(best)
            better = value < best
            best[better], choice[better] = value[better], number
        carried = [carrier_macs(layer, LayerPlan(layer.name, w), self.per_layer) for w in widths_in]
        best += np.array(pruned)[:, None] + multiplier * np.array(carried)[:, None] / self.total
        ranks = [[options[number] for number in row] for row in choice]
        return best, ranks

    @staticmethod
    def _columns(layer, width):
        return layer.in_channels if width is None else width * layer.input_space.repeat

    def _uniform_items(self, share):
        """Sizes at which each applied step keeps ``share`` of what the layer cost before it."""
        items = {}
        for layer in self.graph.layers:
            curves = self.curves[layer.name]
            item = LayerPlan(layer.name)
            if curves.prune is not None:
                item.keep = max(1, int(share * layer.input_space.width + 1e-9))
            width_in = self._columns(layer, item.keep)
            cost = chain_macs(layer, width_in, layer.out_channels)
            if curves.spatial is not None:
                per_rank = chain_macs(layer, width_in, layer.out_channels, 1)
                item.spatial_rank = int(np.clip(share * cost / per_rank, 1, len(curves.spatial) - 1))
                cost = chain_macs(layer, width_in, layer.out_channels, item.spatial_rank)
            if curves.channel is not None:
                fixed = chain_macs(layer, width_in, layer.out_channels, item.spatial_rank, 0)
                per_rank = chain_macs(layer, width_in, layer.out_channels, item.spatial_rank, 1) - fixed
                item.channel_rank = int(np.clip((share * cost - fixed) / per_rank, 1, layer.out_channels))
            items[layer.name] = item
        return items

    # -- what the grid leaves ----------------------------------------------------------------------------

    def _fill(self, items, target):
        """Use what is left of the target: raise sizes one by one, and where none fits, exchange a layer's steps."""
        items = {name: LayerPlan(i.layer, i.keep, i.spatial_rank, i.channel_rank) for name, i in items.items()}
        macs = self._raise_sizes(items, self.macs(items), target)
        while (switched := self._switch_steps(items, macs, target)) is not None:
            macs = self._raise_sizes(items, switched, target)
        while macs < LOWEST_SHARE * target and (exchanged := self._exchange(items, macs, target)) is not None:
            macs = self._raise_sizes(items, exchanged, target)
        for layer in self.graph.layers:
            item = items[layer.name]
            item.left_alone = dict(layer.left_alone)
            if item.keep is not None and item.keep == layer.input_space.width:
                item.keep = None
        return items

    def _raise_sizes(self, items, macs, target):
        """Raise single sizes, most error saved per cost first, while the target holds; returns the cost."""
        while True:
            best = None
            for name, item in items.items():
                for step, curve in self._raisable(name, item):
                    size = getattr(item, step)
                    before = self._local_macs(items, name)
                    setattr(item, step, size + 1)
                    more = macs + self._local_macs(items, name) - before
                    setattr(item, step, size)
                    if more > target:
                        continue
                    gain = curve[size] - curve[size + 1]
                    rank = gain / (more - macs) if more > macs else np.inf
                    if best is None or rank > best[0]:
                        best = (rank, item, step, size + 1, more)
            if best is None:
                return macs
            setattr(best[1], best[2], best[3])
            macs = best[4]

    def _switch_steps(self, items, macs, target):
        """The one exchange of a layer's ranks that lowers the error most within the target; None if there is none."""
        best = None
        for layer in self.graph.layers:
            item, curves = items[layer.name], self.curves[layer.name]
            if curves.spatial is None and curves.channel is None:
                continue
            before, error = self._layer_macs(items, layer), curves.error(item)
            old = item.spatial_rank, item.channel_rank
            for ranks in self._options(curves):
                item.spatial_rank, item.channel_rank = ranks
                gain, more = error - curves.error(item), macs + self._layer_macs(items, layer) - before
                if gain > 1e-9 * error and more <= target and (best is None or gain > best[0]):
                    best = (gain, item, ranks, more)
            item.spatial_rank, item.channel_rank = old
        if best is None:
            return None
        best[1].spatial_rank, best[1].channel_rank = best[2]
        return best[3]

    def _exchange(self, items, macs, target):
        """Raise one size beyond the target and pay with another layer, where both together lower the error.

        Coarse networks need it: one channel of a wide map may cost more than the target leaves.
        """
        best = None
        for name, item in items.items():
            for step, curve in self._raisable(name, item):
                size = getattr(item, step)
                before = self._local_macs(items, name)
                setattr(item, step, size + 1)
                over = macs + self._local_macs(items, name) - before
                for other in items:
                    if other == name or over <= target:
                        continue
                    for loss, ranks, after in self._cheaper(items, other, over - target):
                        net = curve[size] - curve[size + 1] - loss
                        use = over - after
                        if net > 0 and use > macs and (best is None or net > best[0]):
                            best = (net, item, step, size + 1, items[other], ranks, use)
                setattr(item, step, size)
        if best is None:
            return None
        _, item, step, size, other, ranks, use = best
        setattr(item, step, size)
        other.spatial_rank, other.channel_rank = ranks
        return use

    def _cheaper(self, items, name, need):
        """Ranks of a layer that save at least ``need``: (error added, ranks, cost saved)."""
        item, curves, layer = items[name], self.curves[name], self.graph.layer(name)
        if curves.spatial is None and curves.channel is None:
            return
        before, error = self._layer_macs(items, layer), curves.error(item)
        old = item.spatial_rank, item.channel_rank
        for ranks in self._options(curves):
            item.spatial_rank, item.channel_rank = ranks
            saved = before - self._layer_macs(items, layer)
            if saved >= need:
                yield curves.error(item) - error, ranks, saved
            item.spatial_rank, item.channel_rank = old

    @staticmethod
    def _options(curves):
        """All pairs (spatial rank, channel rank) on the grid, None where a step is not applied."""
        spatial = [None] + (_sizes(len(curves.spatial) - 1) if curves.spatial is not None else [])
        channel = [None] + (_sizes(len(curves.channel) - 1) if curves.channel is not None else [])
        return [(r, d) for r in spatial for d in channel]

    def _raisable(self, name, item):
        curves = self.curves[name]
        for step, curve in (("keep", curves.prune), ("spatial_rank", curves.spatial), ("channel_rank", curves.channel)):
            size = getattr(item, step)
            if size is not None and size + 1 < len(curve):
                yield step, curve


def _sizes(limit, with_limit=False):
    """About GRID sizes in 1..limit, finer towards the small end; with the limit itself for widths."""
    shares = np.geomspace(1.0 / min(limit, 48), 1.0, GRID) if limit > GRID else np.arange(1, limit + 1) / limit
    sizes = sorted({max(1, int(round(limit * s))) for s in shares})
    return sizes if with_limit or limit == 1 else [s for s in sizes if s < limit]
