"""The best sizes on a grid for one Lagrange multiplier: dynamic programming along chains of coupled layers.

The cost of a layer depends on the width it reads and the width its reader leaves of its output, so layers are coupled
along chains of spaces. Between the widths at its two sides every layer chooses its ranks by itself.
"""

import numpy as np

from decomp.allocation.plan import LayerPlan


def solve(alternatives, multiplier):
    """Sizes on the grid that minimise error + multiplier · cost / cost of the original.

    Parameters
    ----------
    alternatives : decomp.allocation.choices.Alternatives
    multiplier : float
        Infinite: the cost alone.

    Returns
    -------
    dict of str to LayerPlan
    """
    items = {}
    for chain in alternatives.chains():
        items.update(_solve_chain(alternatives, chain, multiplier))
    return {layer.name: items[layer.name] for layer in alternatives.graph.layers}


def _solve_chain(alternatives, chain, multiplier):
    # best[w]: the least objective of the layers so far, when the next one reads the w-th width. The first layer may
    # choose among widths too, by a sampler: whoever writes them is not in the chain.
    best, steps = np.zeros(len(alternatives.widths(chain[0]))), []
    for layer in chain:
        error, cost = alternatives.table(layer)
        value = np.where(np.isinf(error), np.inf, cost) if np.isinf(multiplier) else error + multiplier * cost
        ranks = value.argmin(axis=2)
        total = best[:, None] + np.take_along_axis(value, ranks[:, :, None], axis=2)[:, :, 0]
        came_from = total.argmin(axis=0)
        best = total.min(axis=0)
        steps.append((layer, came_from, ranks))
    items, column = {}, int(best.argmin())
    for layer, came_from, ranks in reversed(steps):
        row = came_from[column]
        pair = alternatives.ranks(layer.name)[ranks[row, column]]
        items[layer.name] = LayerPlan(layer.name, alternatives.widths(layer)[row], *pair)
        column = row
    return items


def solve_for_target(alternatives, target):
    """Sizes on the grid with the least error that one multiplier finds within a cost.

    Parameters
    ----------
    alternatives : decomp.allocation.choices.Alternatives
    target : float
        At least the cost of ``solve(alternatives, inf)``.

    Returns
    -------
    dict of str to LayerPlan
    """

    def attempt(multiplier):
        items = solve(alternatives, multiplier)
        return items, alternatives.total_cost(items) <= target

    low, high = 0.0, 1e-12
    while not (found := attempt(high))[1]:
        low, high = high, high * 8
        if high > 1e12:
            return solve(alternatives, np.inf)
    for _ in range(48):
        middle = np.sqrt(low * high) if low > 0 else high / 8
        tried = attempt(middle)
        if tried[1]:
            high, found = middle, tried
        else:
            low = middle
        if low > 0 and high / low < 1 + 1e-6:
            break
    return found[0]
