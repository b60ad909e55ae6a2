"""Local search that spends the budget left by the grid search: raise a size, exchange ranks, trade two layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from decomp.allocation.choices import Choices, LayerPlans, Ranks
from decomp.allocation.interfaces import Layer
from decomp.allocation.plan import RANKS, LayerPlan

# A plan uses at least this share of its budget where single sizes allow it.
LOWEST_SHARE = 0.98


class Move(NamedTuple):
    """One size of one layer plan made larger.

    Attributes
    ----------
    plan : LayerPlan
    field : str
        Of the plan.
    size : int
        The new value.
    saved : float
        Loss before less loss after.
    cost : float
        Of the whole network with it.
    """

    plan: LayerPlan
    field: str
    size: int
    saved: float
    cost: float

    def apply(self) -> None:
        """Change the plan."""
        setattr(self.plan, self.field, self.size)


class Exchange(NamedTuple):
    """Other ranks for a layer, and the change of loss and cost that goes with them."""

    ranks: Ranks
    error: float
    cost: float


def fill(choices: Choices, plans: LayerPlans, target: float) -> float:
    """Improve sizes within the target until no move helps; where less than 98 % of it is used, trade layers.

    Parameters
    ----------
    choices : Choices
    plans : dict of str to LayerPlan
        Changed in place; costs at most ``target``.
    target : float

    Returns
    -------
    float
        The cost.
    """
    cost = _raise_sizes(choices, plans, choices.total_cost(plans), target)
    while (switched := _switch_ranks(choices, plans, cost, target)) is not None:
        cost = _raise_sizes(choices, plans, switched, target)
    while cost < LOWEST_SHARE * target and (traded := _trade(choices, plans, cost, target)) is not None:
        cost = _raise_sizes(choices, plans, traded, target)
    return cost


def release(choices: Choices, plans: LayerPlans, target: float) -> float:
    """Take as few sizes as possible off their multiple so that 98 % of the target is used.

    Parameters and result as for :func:`fill`.
    """
    free, cost = choices.with_any_size(), choices.total_cost(plans)
    released: set[tuple[str, str]] = set()
    while cost < LOWEST_SHARE * target:
        best = _closest_to(free, plans, cost, target, released)
        if best is None:
            return fill(free, plans, target)
        best.apply()
        cost = best.cost
        released.add((best.plan.layer, best.field))
    return cost


def _closest_to(
    free: Choices, plans: LayerPlans, cost: float, target: float, released: set[tuple[str, str]]
) -> Move | None:
    """The change of one size that comes closest to the target; sizes that were released before are not tried."""
    best = None
    for move in _raises(free, plans, cost):
        if (move.plan.layer, move.field) in released:
            continue
        size: int | None = move.size
        more = move.cost
        while size is not None and more <= target:  # in steps of one, as far as the target allows
            if more > (cost if best is None else best.cost):
                best = move._replace(size=size, cost=more)
            size = free.next_size(move.plan.layer, move.field, size)
            more = np.inf if size is None else cost + _change(free, plans, move.plan, move.field, size)
    return best


def keep_to_floors(choices: Choices, plans: LayerPlans) -> None:
    """Raise sizes of layers that are cheaper than ``max_layer_speedup`` allows; changes ``plans`` in place."""
    for layer in choices.graph.layers:
        plan = plans[layer.name]
        reader = choices.readers.get(layer.name)
        while choices.too_cheap(plans, layer):
            owned = [*((plan, name) for name in RANKS), (plan, "keep")]
            owned += [] if reader is None else [(plans[reader.name], "keep")]
            for owner, name in owned:
                size = getattr(owner, name)
                larger = None if size is None else choices.next_size(owner.layer, name, size)
                if larger is not None:
                    setattr(owner, name, larger)
                    break
            else:
                plan.ranks = (None,) * len(RANKS)
                break


def _raises(choices: Choices, plans: LayerPlans, cost: float) -> Iterator[Move]:
    """Every size one step larger."""
    for layer, plan in plans.items():
        for name, curve in choices.curves[layer].by_size():
            size = getattr(plan, name)
            larger = None if size is None or curve is None else choices.next_size(layer, name, size)
            if larger is not None and curve is not None:
                after = cost + _change(choices, plans, plan, name, larger)
                yield Move(plan, name, larger, curve[size] - curve[larger], after)


def _change(choices: Choices, plans: LayerPlans, plan: LayerPlan, name: str, size: int) -> float:
    """Growth of the network's cost when one size is changed."""
    old, before = getattr(plan, name), choices.local_cost(plans, plan.layer)
    setattr(plan, name, size)
    after = choices.local_cost(plans, plan.layer)
    setattr(plan, name, old)
    return after - before


def _raise_sizes(choices: Choices, plans: LayerPlans, cost: float, target: float) -> float:
    """Raise single sizes, most error saved per cost first, while the target holds; returns the cost."""
    while True:
        best = None
        for move in _raises(choices, plans, cost):
            if move.cost <= target:
                rank = move.saved / (move.cost - cost) if move.cost > cost else np.inf
                if best is None or rank > best[0]:
                    best = rank, move
        if best is None:
            return cost
        best[1].apply()
        cost = best[1].cost


def _exchanges(choices: Choices, plans: LayerPlans, layer: Layer) -> Iterator[Exchange]:
    """All other ranks that a layer may have."""
    plan, curves = plans[layer.name], choices.curves[layer.name]
    if not curves.ranked:
        return
    before, error = choices.layer_cost(plans, layer), curves.error(plan)
    old = plan.ranks
    for ranks in choices.ranks(layer.name):
        plan.ranks = ranks
        exchange = Exchange(ranks, curves.error(plan) - error, choices.layer_cost(plans, layer) - before)
        allowed = not choices.too_cheap(plans, layer)
        plan.ranks = old
        if allowed:
            yield exchange


def _switch_ranks(choices: Choices, plans: LayerPlans, cost: float, target: float) -> float | None:
    """Exchange the ranks of the one layer where that lowers the error most; the new cost, or None if nothing helps."""
    best = None
    for layer in choices.graph.layers:
        plan = plans[layer.name]
        least = 1e-9 * choices.curves[layer.name].error(plan)
        for exchange in _exchanges(choices, plans, layer):
            saved, after = -exchange.error, cost + exchange.cost
            if saved > least and after <= target and (best is None or saved > best[0]):
                best = saved, plan, exchange.ranks, after
    if best is None:
        return None
    _, plan, plan.ranks, after = best
    return after


def _trade(choices: Choices, plans: LayerPlans, cost: float, target: float) -> float | None:
    """Raise one size beyond the target and pay with another layer's ranks, where both together lower the error.

    Coarse networks need it: one channel of a wide map may cost more than the target leaves.
    """
    best = None
    for move in list(_raises(choices, plans, cost)):
        if move.cost <= target:
            continue
        old = getattr(move.plan, move.field)
        move.apply()
        for layer in choices.graph.layers:
            if layer.name == move.plan.layer:
                continue
            for exchange in _exchanges(choices, plans, layer):
                net, after = move.saved - exchange.error, move.cost + exchange.cost
                if net > 0 and cost < after <= target and (best is None or net > best[0]):
                    best = net, move, plans[layer.name], exchange.ranks, after
        setattr(move.plan, move.field, old)
    if best is None:
        return None
    _, move, other, ranks, after = best
    move.apply()
    other.ranks = ranks
    return after
