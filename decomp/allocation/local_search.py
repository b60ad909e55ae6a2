"""What a grid of sizes leaves of the target, used by single moves: raise a size, exchange ranks, trade two layers."""

import numpy as np

LOWEST_SHARE = 0.98


def fill(alternatives, items, target):
    """Improve sizes within the target until no move helps; where the target is not used to 98 %, trade layers.

    Parameters
    ----------
    alternatives : decomp.allocation.choices.Alternatives
    items : dict of str to LayerPlan
        Changed in place; costs at most ``target``.
    target : float

    Returns
    -------
    float
        The cost.
    """
    cost = _raise_sizes(alternatives, items, alternatives.total_cost(items), target)
    while (switched := _switch_ranks(alternatives, items, cost, target)) is not None:
        cost = _raise_sizes(alternatives, items, switched, target)
    while cost < LOWEST_SHARE * target and (traded := _trade(alternatives, items, cost, target)) is not None:
        cost = _raise_sizes(alternatives, items, traded, target)
    return cost


def release(alternatives, items, target):
    """Take as few sizes as possible off their multiple to use the target to 98 %.

    Parameters and result as for :func:`fill`.
    """
    free, cost, released = alternatives.with_any_size(), alternatives.total_cost(items), set()
    while cost < LOWEST_SHARE * target:
        best = None
        for item, name, size, _, more in _raises(free, items, cost):
            # In steps of one, as far as the target allows; the size that comes closest to it is taken.
            while size is not None and more <= target and (item.layer, name) not in released:
                if more > (cost if best is None else best[0]):
                    best = more, item, name, size
                size = free.next_size(item.layer, name, size)
                more = np.inf if size is None else cost + _change(free, items, item, name, size)
        if best is None:
            return fill(free, items, target)
        cost, item, name, size = best
        setattr(item, name, size)
        released.add((item.layer, name))
    return cost


def keep_to_floors(alternatives, items):
    """Raise what makes a layer cheaper than it may become; changes ``items`` in place."""
    for layer in alternatives.graph.layers:
        item = items[layer.name]
        reader = alternatives.readers.get(layer.name)
        while alternatives.too_cheap(items, layer):
            owned = [(item, "spatial_rank"), (item, "channel_rank"), (item, "keep")]
            owned += [] if reader is None else [(items[reader.name], "keep")]
            for owner, name in owned:
                size = getattr(owner, name)
                larger = None if size is None else alternatives.next_size(owner.layer, name, size)
                if larger is not None:
                    setattr(owner, name, larger)
                    break
            else:
                item.spatial_rank = item.channel_rank = None
                break


def _raises(alternatives, items, cost):
    """Every size one step larger: (item, name of the size, new size, error saved, new cost of the network)."""
    for layer, item in items.items():
        for name, curve in alternatives.curves[layer].by_size():
            size = getattr(item, name)
            larger = None if size is None or curve is None else alternatives.next_size(layer, name, size)
            if larger is not None:
                saved = curve[size] - curve[larger]
                yield item, name, larger, saved, cost + _change(alternatives, items, item, name, larger)


def _change(alternatives, items, item, name, size):
    """What the network's cost grows by when one size is changed."""
    old, before = getattr(item, name), alternatives.local_cost(items, item.layer)
    setattr(item, name, size)
    after = alternatives.local_cost(items, item.layer)
    setattr(item, name, old)
    return after - before


def _raise_sizes(alternatives, items, cost, target):
    """Raise single sizes, most error saved per cost first, while the target holds; returns the cost."""
    while True:
        best = None
        for item, name, size, saved, more in _raises(alternatives, items, cost):
            if more <= target:
                rank = saved / (more - cost) if more > cost else np.inf
                if best is None or rank > best[0]:
                    best = rank, item, name, size, more
        if best is None:
            return cost
        _, item, name, size, cost = best
        setattr(item, name, size)


def _exchanges(alternatives, items, layer):
    """Other ranks for a layer: (ranks, error added, cost added)."""
    item, curves = items[layer.name], alternatives.curves[layer.name]
    if not curves.ranked:
        return
    before, error = alternatives.layer_cost(items, layer), curves.error(item)
    old = item.spatial_rank, item.channel_rank
    for ranks in alternatives.ranks(layer.name):
        item.spatial_rank, item.channel_rank = ranks
        added = curves.error(item) - error, alternatives.layer_cost(items, layer) - before
        allowed = not alternatives.too_cheap(items, layer)
        item.spatial_rank, item.channel_rank = old
        if allowed:
            yield ranks, *added


def _switch_ranks(alternatives, items, cost, target):
    """The one exchange of a layer's ranks that lowers the error most within the target; None if there is none."""
    best = None
    for layer in alternatives.graph.layers:
        item = items[layer.name]
        least = 1e-9 * alternatives.curves[layer.name].error(item)
        for ranks, error, more in _exchanges(alternatives, items, layer):
            if -error > least and cost + more <= target and (best is None or -error > best[0]):
                best = -error, item, ranks, cost + more
    if best is None:
        return None
    _, item, ranks, cost = best
    item.spatial_rank, item.channel_rank = ranks
    return cost


def _trade(alternatives, items, cost, target):
    """Raise one size beyond the target and pay with another layer's ranks, where both together lower the error.

    Coarse networks need it: one channel of a wide map may cost more than the target leaves.
    """
    best = None
    for item, name, size, saved, over in list(_raises(alternatives, items, cost)):
        if over <= target:
            continue
        old = getattr(item, name)
        setattr(item, name, size)
        for layer in alternatives.graph.layers:
            if layer.name == item.layer:
                continue
            for ranks, error, more in _exchanges(alternatives, items, layer):
                net, use = saved - error, over + more
                if net > 0 and cost < use <= target and (best is None or net > best[0]):
                    best = net, item, name, size, items[layer.name], ranks, use
        setattr(item, name, old)
    if best is None:
        return None
    _, item, name, size, other, ranks, cost = best
    setattr(item, name, size)
    other.spatial_rank, other.channel_rank = ranks
    return cost
