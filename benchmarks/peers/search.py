"""Bisection of a tool's compression parameter to a target cost."""

#: How far below the target a network may lie, as a share of it.
TOLERANCE = 0.02
MOST_TRIALS = 16


class Unreachable(Exception):
    """Even the smallest network that the tool makes costs more than is asked."""


def meet(make, count, budget, low, high, *, tolerance=TOLERANCE, trials=MOST_TRIALS):
    """The most costly network within a budget, by bisection.

    Parameters
    ----------
    make : callable
        ``make(share)`` gives what the tool makes when it keeps this share; its cost grows with the share.
    count : callable
        ``count(made)`` gives its cost.
    budget : float
    low, high : float
        Shares between which is searched.
    tolerance : float
        Costs from ``(1 - tolerance) * budget`` to ``budget`` end the search.
    trials : int
        How many are made at most; then the closest below the budget is taken.

    Returns
    -------
    made, share
        What the best share gave.

    Raises
    ------
    Unreachable
    """
    best, least = None, float("inf")
    for _ in range(trials):
        share = (low + high) / 2
        made = make(share)
        found = count(made)
        least = min(least, found)
        if found > budget:
            high = share
            continue
        low = share
        if best is None or found > best[0]:
            best = (found, made, share)
        if found >= (1 - tolerance) * budget:
            break
    if best is None:
        raise Unreachable(f"costs {least / budget:.3g} times what is asked at the least")
    return best[1:]


def spread(sizes, share):
    """Shares of sizes, shifted by less than one unit each so that they do not all jump at once.

    Tools round a share of each layer's channels down to whole ones. Where widths are powers of two, all layers lose a
    channel at the same share, and the cost falls in steps of several percent. A unit's fraction, another one for
    every layer, is added to what is kept.

    Parameters
    ----------
    sizes : sequence of int
    share : float

    Returns
    -------
    list of float
        In 0..1.
    """
    return [min(1.0, share + (place + 0.5) / len(sizes) / size) for place, size in enumerate(sizes)]
