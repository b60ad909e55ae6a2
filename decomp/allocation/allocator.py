r"""Allocator: from a target cost to ranks and widths, for all layers and steps at once.

Each layer i has curves: the change of the network's output when it reads only k of its input channels, when
its kernel has spatial rank R, and when it has channel rank d (:mod:`decomp.solvers.output_curves`). The sizes minimise

.. math:: \sum_i \left( e^{prune}_i(k_i) + e^{spatial}_i(R_i) + e^{channel}_i(d_i) \right)
          \quad\text{subject to}\quad \mathrm{cost}(k, R, d) \le T.

One Lagrange multiplier for the whole network and dynamic programming along chains of layers
(:mod:`decomp.allocation.dynamic_programming`) solve this exactly on a grid of sizes; single moves
(:mod:`decomp.allocation.local_search`) then spend the budget that the grid leaves. The cost is any
:class:`decomp.allocation.interfaces.CostModel`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from decomp.allocation.choices import Choices, LayerPlans, exact_spatial_rank, number
from decomp.allocation.dynamic_programming import solve, solve_for_target
from decomp.allocation.interfaces import CostModel, Graph, Layer
from decomp.allocation.layer_curves import Curve, LayerCurves
from decomp.allocation.local_search import LOWEST_SHARE, fill, keep_to_floors, release
from decomp.allocation.plan import RANKS, SIZES, LayerPlan, columns
from decomp.allocation.rules import Rules
from decomp.errors import TargetError


class Allocator:
    """Chooses sizes for one network.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    curves : dict of str to LayerCurves
        One for each layer of the graph.
    cost : CostModel
    rules : Rules, optional
    """

    def __init__(
        self, graph: Graph, curves: Mapping[str, LayerCurves], cost: CostModel, rules: Rules | None = None
    ) -> None:
        self.graph, self.rules, self._cost = graph, rules or Rules(), cost
        self.choices = Choices(graph, curves, cost, self.rules)
        self._smallest: LayerPlans | None = None

    @property
    def total(self) -> float:
        """Cost of the original network."""
        return self._cost.total

    def joint(self, speedup: float) -> LayerPlans:
        """Sizes that minimise the summed loss at ``total / speedup``.

        Returns
        -------
        dict of str to LayerPlan

        Raises
        ------
        TargetError
            If the target is out of reach; says the maximum that can be reached.
        """
        self._require_reachable(speedup)
        target = self.total / speedup
        return self._finish(solve_for_target(self.choices, target), target)

    def uniform(self, speedup: float) -> LayerPlans:
        """The same share for every layer and step: each applied step keeps the same share of a layer's cost."""
        self._require_reachable(speedup)
        target, low, high = self.total / speedup, 0.0, 1.0
        within = self.smallest()
        for _ in range(60):
            share = (low + high) / 2
            plans = self._uniform_plans(share)
            if self.cost(plans) > target:
                high = share
            else:
                low, within = share, plans
        return self._finish(within, target)

    def with_energy(self) -> Allocator:
        """The same network with the published rule's loss: −log of the kept share of energy, its product maximised.

        For curves of relative errors (1505.06798, section 4.1): Π (1 − e) over layers and steps is greatest where
        Σ −log(1 − e) is least.
        """

        def loss(step: str, curve: Curve) -> Curve:
            return -np.log(np.clip(1 - curve, 1e-12, 1.0))

        curves = {name: own.map(loss) for name, own in self.choices.curves.items()}
        return Allocator(self.graph, curves, self._cost, self.rules)

    def cost(self, plans: LayerPlans) -> float:
        """Cost of the whole network."""
        return self.choices.total_cost(plans)

    def error(self, plans: LayerPlans) -> float:
        """The objective."""
        return self.choices.error(plans)

    def smallest(self) -> LayerPlans:
        """The cheapest sizes on the grid."""
        if self._smallest is None:
            self._smallest = solve(self.choices, np.inf)
        return _copy(self._smallest)

    def most(self) -> float:
        """The greatest speed-up that any sizes give."""
        return self.total / self.cost(self.smallest())

    def _require_reachable(self, speedup: float) -> None:
        most = self.most()
        if speedup > most:
            raise TargetError(
                "speedup", f"at most {round_down(most)}x can be reached on this network", got=f"{speedup:g}x",
                fix="lower the target or allow more steps",
            )  # fmt: skip

    def _uniform_plans(self, share: float) -> LayerPlans:
        """Sizes at which each applied step keeps ``share`` of the layer's cost before it."""
        plans = {}
        for layer in self.graph.layers:
            curves = dict(self.choices.curves[layer.name].by_size())
            plan = plans[layer.name] = LayerPlan(layer.name)
            if curves["keep"] is not None:
                plan.keep = self.choices.at_most(layer.name, "keep", share * layer.input_width + 1e-9)
            widths, ranks = (columns(layer, plan.keep), layer.out_channels), dict.fromkeys(RANKS)
            for name in RANKS:
                if curves[name] is not None:
                    budget = share * number(self._cost.layer(layer, *widths, *ranks.values()))
                    ranks[name] = self._rank(layer, name, budget, widths, ranks)
            plan.ranks = tuple(ranks.values())
        keep_to_floors(self.choices, plans)
        return plans

    def _rank(
        self, layer: Layer, name: str, budget: float, widths: tuple[int, int], ranks: Mapping[str, int | None]
    ) -> int:
        """The largest allowed rank with which the layer costs at most ``budget``."""
        sizes = self.choices.sizes[layer.name, name]
        costs = self._cost.layer(layer, *widths, *{**ranks, name: sizes}.values())
        within = np.broadcast_to(costs, sizes.shape) <= budget * (1 + 1e-12)
        return int(sizes[max(0, int(within.sum()) - 1)])

    def _finish(self, plans: LayerPlans, target: float) -> LayerPlans:
        """Spend the rest of the budget, and note why steps were not applied."""
        plans = _copy(plans)
        if fill(self.choices, plans, target) < LOWEST_SHARE * target:
            release(self.choices, plans, target)
        for layer in self.graph.layers:
            plan = plans[layer.name]
            plan.left_alone = dict(layer.left_alone)
            plan.spatial_rank = exact_spatial_rank(layer, plan)  # a layer without any loss may have been given more
            plan.off_multiple = self.choices.off_multiple(plan)
            if plan.keep is not None and plan.keep == layer.input_width:
                plan.keep = None
        return plans


def round_down(speedup: float) -> str:
    """A speed-up with two decimals that is still reached, as text."""
    return f"{np.floor(speedup * 100) / 100:.2f}"


def _copy(plans: LayerPlans) -> LayerPlans:
    """The sizes alone."""
    return {
        name: LayerPlan(plan.layer, **{size: getattr(plan, size) for size in SIZES.values()})
        for name, plan in plans.items()
    }
