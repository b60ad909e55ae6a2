"""Dynamic programming along chains of layers: the best sizes on a grid for one Lagrange multiplier.

The cost of a layer depends on the width it reads and the width that its reader leaves of its output, so layers that
share channel spaces form chains. Between the widths at its two sides every layer chooses its ranks by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decomp.allocation.choices import Choices, LayerPlans
from decomp.allocation.interfaces import Layer
from decomp.allocation.plan import LayerPlan


def solve(choices: Choices, multiplier: float) -> LayerPlans:
    """Sizes on the grid that minimise error + multiplier · cost / cost of the original.

    Parameters
    ----------
    choices : Choices
    multiplier : float
        Infinite: the cost alone.

    Returns
    -------
    dict of str to LayerPlan
    """
    plans: LayerPlans = {}
    for chain in choices.chains():
        plans.update(_solve_chain(choices, chain, multiplier))
    return {layer.name: plans[layer.name] for layer in choices.graph.layers}


def _solve_chain(choices: Choices, chain: list[Layer], multiplier: float) -> LayerPlans:
    # best[w]: the least objective of the layers so far, when the next one reads the w-th width. The first layer may
    # choose among widths too, by a sampler: the layer that writes them is not in the chain.
    best: NDArray[np.floating] = np.zeros(len(choices.widths(chain[0])))
    decisions = []
    for layer in chain:
        error, cost = choices.table(layer)
        value = np.where(np.isinf(error), np.inf, cost) if np.isinf(multiplier) else error + multiplier * cost
        ranks = value.argmin(axis=2)
        total = best[:, None] + np.take_along_axis(value, ranks[:, :, None], axis=2)[:, :, 0]
        came_from = total.argmin(axis=0)
        best = total.min(axis=0)
        decisions.append((layer, came_from, ranks))
    plans, column = {}, int(best.argmin())
    for layer, came_from, ranks in reversed(decisions):
        row = int(came_from[column])
        combination = choices.ranks(layer.name)[ranks[row, column]]
        keep = choices.widths(layer)[row]
        plans[layer.name] = LayerPlan.of(layer.name, keep, combination)
        column = row
    return plans


def solve_for_target(choices: Choices, target: float) -> LayerPlans:
    """Sizes on the grid with the least error that one multiplier finds within a cost.

    Bisection on the multiplier, of which the cost is a falling function.

    Parameters
    ----------
    choices : Choices
    target : float
        At least the cost of ``solve(choices, inf)``.

    Returns
    -------
    dict of str to LayerPlan
    """

    def within(plans: LayerPlans) -> bool:
        return choices.total_cost(plans) <= target

    low, high = 0.0, 1e-12
    while not within(plans := solve(choices, high)):
        low, high = high, high * 8
        if high > 1e12:
            return solve(choices, np.inf)
    for _ in range(48):
        middle = float(np.sqrt(low * high)) if low > 0 else high / 8
        attempt = solve(choices, middle)
        if within(attempt):
            high, plans = middle, attempt
        else:
            low = middle
        if low > 0 and high / low < 1 + 1e-6:
            break
    return plans
