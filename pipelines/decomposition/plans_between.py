"""Plans between a slow and a fast one: single sizes change one after the other, the least loss for the time first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from decomp.allocation.choices import Choices, LayerPlans, Ranks, exact_spatial_rank
from decomp.allocation.interfaces import Layer
from decomp.allocation.plan import RANKS, LayerPlan

#: Steps in which one layer goes from its sizes in the slow plan to those in the fast one.
STEPS_OF_A_LAYER = 6


def plans_between(choices: Choices, slow: LayerPlans, fast: LayerPlans) -> list[LayerPlans]:
    """Plans on a path from a slow plan to a fast one, both left out.

    Parameters
    ----------
    choices : decomp.allocation.choices.Choices
        Allowed sizes. Where a layer has no allowed size between its two, those off the multiple are used.
    slow, fast : dict of str to LayerPlan

    Returns
    -------
    list of dict of str to LayerPlan
        Each differs from the one before it in one layer. None in which a layer becomes cheaper than the rules allow.
    """
    left = {layer.name: _states(choices, layer, slow[layer.name], fast[layer.name]) for layer in choices.graph.layers}
    path, plans = [], dict(slow)
    while any(left.values()):
        name = _cheapest(choices, plans, {name: states[0] for name, states in left.items() if states})
        plans = {**plans, name: left[name].pop(0)}
        path.append(plans)
    allowed = [
        between for between in path[:-1] if not any(choices.too_cheap(between, layer) for layer in choices.graph.layers)
    ]
    return [_completed(choices, between) for between in allowed]


def _cheapest(choices: Choices, plans: LayerPlans, following: LayerPlans) -> str:
    """The layer whose next sizes lose least for the time that they save."""
    cost, error = choices.total_cost(plans), choices.error(plans)

    def price(name: str) -> tuple[bool, float]:
        after = {**plans, name: following[name]}
        saved, lost = cost - choices.total_cost(after), choices.error(after) - error
        if lost <= 0:  # something is given back: what it costs in time is paid by the changes that follow
            return False, -np.inf if saved > 0 else lost
        return saved <= 0, lost / max(saved, 1e-12)

    return min(following, key=price)


def _states(choices: Choices, layer: Layer, slow: LayerPlan, fast: LayerPlan) -> list[LayerPlan]:
    """Sizes of one layer on the way: first its width changes, then its ranks; the last ones are those of `fast`."""
    widths = _sizes(choices, layer.name, "keep", _width(layer, slow), _width(layer, fast))
    states = [replace(slow, keep=width) for width in widths]
    if slow.ranks != fast.ranks:
        for ranks in _ranks(choices, layer.name, slow.ranks, fast.ranks):
            state = replace(fast)
            state.ranks = ranks
            states.append(state)
    return states


def _width(layer: Layer, plan: LayerPlan) -> int:
    return layer.input_width if plan.keep is None else plan.keep


def _ranks(choices: Choices, layer: str, slow: Ranks, fast: Ranks) -> list[Ranks]:
    """Combinations of ranks on the way. Another combination of steps replaces the layer at once."""
    if [rank is None for rank in slow] != [rank is None for rank in fast]:
        return [fast]
    states, ranks = [], list(slow)
    for place, name in enumerate(RANKS):
        before, after = slow[place], fast[place]
        for rank in [] if before is None or after is None else _sizes(choices, layer, name, before, after):
            ranks[place] = rank
            states.append(tuple(ranks))
    return states


def _sizes(choices: Choices, layer: str, name: str, slow: int, fast: int) -> list[int]:
    """At most :data:`STEPS_OF_A_LAYER` sizes from the one behind `slow` to `fast`."""
    if slow == fast:
        return []
    low, high = sorted((slow, fast))
    allowed = choices.sizes.get((layer, name), np.array([], int))
    inside = allowed[(allowed > low) & (allowed < high)]
    if not len(inside):
        inside = np.arange(low + 1, high)
    if len(inside) >= STEPS_OF_A_LAYER:
        places = np.linspace(0, len(inside) - 1, STEPS_OF_A_LAYER - 1).round().astype(int)
        inside = inside[places]
    ordered = inside if slow < fast else inside[::-1]
    return [*(int(size) for size in ordered), fast]


def _completed(choices: Choices, plans: LayerPlans) -> LayerPlans:
    """The plans as an allocation leaves them."""
    done = {}
    for layer in choices.graph.layers:
        plan = replace(plans[layer.name])
        # The width may be that of the fast plan already, and the rank still that of the slow one.
        plan.spatial_rank = exact_spatial_rank(layer, plan)
        plan.off_multiple = choices.off_multiple(plan)
        if plan.keep == layer.input_width:
            plan.keep = None
        done[layer.name] = plan
    return done
