"""Choice of the channels that stay: by a share of each layer, a share of all channels, or a target speed-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from decomp.criteria.names import RANKINGS
from decomp.criteria.ranking import FLOOR, Limits, Order, normalised, rounded_down, top
from decomp.errors import TargetError, UsageError, check_choice

#: A step of the same share in all spaces that passes the target by more than this factor is taken in some of them only.
COARSE = 1.05
#: The cost of a network whose spaces keep these channels.
Cost = Callable[[Mapping[str, list[int]]], float]
#: The score of one space when others keep only some channels; see :func:`decomp.criteria.scores.score`.
ScoreOf = Callable[[str, Mapping[str, list[int]]], Tensor]


@dataclass(frozen=True)
class Choice:
    """The channels that stay.

    Attributes
    ----------
    keep : dict of str to list of int
        Ascending places, for every space that was scored.
    limited : tuple of str
        Spaces that would have lost more channels without the limits (floor, cap, at least one).
    """

    keep: dict[str, list[int]]
    limited: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many channels of each space stay."""
        return {name: len(places) for name, places in self.keep.items()}


def check_ratio(ratio: object, thing: str = "ratio") -> float:
    """A share of channels to drop, from 0 to less than 1.

    Raises
    ------
    UsageError
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise UsageError(thing, "must be a share of channels to drop, from 0 to less than 1", got=repr(ratio))
    return float(ratio)


def by_counts(
    scores: Mapping[str, Tensor], counts: Mapping[str, int], limited: tuple[str, ...] = (), *,
    emptied: Container[str] = (),
) -> Choice:  # fmt: skip
    """In each space the given number of channels with the highest scores; all where none is given.

    At least one, but in the spaces `emptied`.
    """
    for name, count in counts.items():
        if name not in scores or not (0 if name in emptied else 1) <= count <= len(scores[name]):
            there = f"1..{len(scores[name])}" if name in scores else "a channel space that was scored"
            raise UsageError(name, f"the number of channels that stay must be in {there}", got=count)
    return Choice({name: top(s, counts.get(name, len(s))) for name, s in scores.items()}, limited)


def by_layer(scores: Mapping[str, Tensor], ratio: float | Mapping[str, float], limits: Limits | None = None) -> Choice:
    """Drop a share of the channels of each space.

    Parameters
    ----------
    scores : mapping of str to torch.Tensor
    ratio : float or mapping of str to float
        In [0, 1), for all spaces or for some of them by name; a space without one keeps all. width·(1 − ratio)
        channels stay, rounded down, at least one.
    limits : Limits, optional

    Raises
    ------
    UsageError
        Ratio out of range, or for a space that was not scored.
    """
    ratios = ratio if isinstance(ratio, Mapping) else dict.fromkeys(scores, ratio)
    bounds, counts, limited = (limits or Limits()).with_floor(0.0), {}, []
    for name, share in ratios.items():
        if name not in scores:
            raise UsageError(name, "is not a channel space that was scored")
        thing = f"ratio of {name}" if isinstance(ratio, Mapping) else "ratio"
        width, least = len(scores[name]), bounds.least(len(scores[name]), name)
        wanted = rounded_down(width * (1 - check_ratio(share, thing)))
        counts[name] = bounds.rounded(max(wanted, least), width)
        if least > wanted:
            limited.append(name)
    return by_counts(scores, counts, tuple(limited), emptied=bounds.emptied)


def by_rank(
    scores: Mapping[str, Tensor], ratio: float, limits: Limits | None = None, normalisation: str = "none"
) -> Choice:
    """Drop a share of all channels, those with the lowest scores in all spaces together.

    Exactly ratio·n of the n channels go, rounded down: where a space has reached its limit, the next channels in the
    order go instead. Only a multiple may keep more, and a cap that is not below the ratio, by less than a channel of
    each space: half of 5 channels are 2.

    Parameters
    ----------
    scores : mapping of str to torch.Tensor
    ratio : float
        In [0, 1).
    limits : Limits, optional
    normalisation : {'none', 'mean', 'max', 'l2'}
        See :func:`decomp.criteria.ranking.normalised`.

    Raises
    ------
    UsageError
        Ratio out of range.
    TargetError
        The limits keep more channels.
    """
    bounds = (limits or Limits()).with_floor(FLOOR)
    order, total = Order.of(scores, bounds, normalisation), sum(map(len, scores.values()))
    dropped = rounded_down(total * check_ratio(ratio))
    if order.most < dropped <= Order.of(scores, replace(bounds, cap=1.0), normalisation).most and ratio <= bounds.cap:
        dropped = order.most  # the cap allows the share, only whole channels fall short of it
    if dropped > order.most:
        share = math.floor(1000 * order.most / total) / 1000
        raise TargetError(
            "ratio", f"at most {order.most} of {total} channels can go, as each layer keeps {_kept_words(bounds)}",
            got=f"{ratio:g}, which is {dropped}", fix=f"take {share:g} or less, or loosen these limits",
        )  # fmt: skip
    return _ranked(scores, order, dropped, bounds)


def for_speedup(
    scores: Mapping[str, Tensor],
    speedup: float,
    cost: Cost,
    *,
    original: float | None = None,
    ranking: str = "global",
    normalisation: str = "none",
    limits: Limits | None = None,
) -> Choice:
    """Drop as few channels as a speed-up needs.

    Parameters
    ----------
    scores : mapping of str to torch.Tensor
    speedup : float
        From 1: the original's cost over that of the result, at least.
    cost : callable
        Takes the channels that each space keeps; must not grow when fewer stay.
    original : float, optional
        Cost of the original; that of all channels if None.
    ranking : {'global', 'layer'}
        Channels go in the order of the scores of all spaces, or the same share goes of every space. Where few channels
        or groups make the steps of such a share coarse, the last step is taken in some of the spaces only.
    normalisation, limits
        As for :func:`by_rank`.

    Raises
    ------
    UsageError
        For a speed-up below 1.
    TargetError
        The speed-up is out of reach: names the greatest there is, and which of the limits can be loosened.
    """
    if isinstance(speedup, bool) or not isinstance(speedup, (int, float)) or not 1 <= speedup < math.inf:
        raise UsageError("speedup", "must be a number from 1", got=repr(speedup))
    bounds = _bounds(limits or Limits(), ranking)
    whole = cost(by_counts(scores, {}).keep) if original is None else original
    steps = _steps(scores, ranking, normalisation, bounds)
    most = whole / cost(steps.choice(steps.last).keep)
    if most < speedup:
        raise _out_of_reach(scores, speedup, most, cost, whole, bounds)
    low, high = -1, steps.last  # the cost at `high` meets the target, that at `low` does not
    while high - low > 1:
        middle = (low + high) // 2
        met = whole / cost(steps.choice(middle).keep) >= speedup
        low, high = (low, middle) if met else (middle, high)
    choice = steps.choice(high)
    if ranking == "global" or high == 0 or whole / cost(choice.keep) <= COARSE * speedup:
        return choice
    return _between(scores, steps.choice(low), choice, lambda keep: whole / cost(keep) >= speedup)


def _between(
    scores: Mapping[str, Tensor], less: Choice, more: Choice, met: Callable[[dict[str, list[int]]], bool]
) -> Choice:
    """A choice between two steps: the next channels go of only as many spaces as the target needs.

    Those go first whose scores are the lowest in comparison with the mean of their space.
    """
    relative, going = normalised(scores, "mean"), {}
    for name in scores:
        if gone := sorted(set(less.keep[name]) - set(more.keep[name])):
            going[name] = float(relative[name][gone].mean())
    order = sorted(going, key=lambda name: going[name])

    def choice(count: int) -> Choice:
        taken = set(order[:count])
        keep = {name: more.keep[name] if name in taken else places for name, places in less.keep.items()}
        return Choice(keep, tuple(name for name in more.limited if name in taken or name in less.limited))

    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(choice(middle).keep) else (middle, high)
    return choice(high)


def greatest_speedup(
    scores: Mapping[str, Tensor], cost: Cost, original: float, limits: Limits | None = None, ranking: str = "global"
) -> float:
    """The speed-up when every space loses all the channels that it may lose."""
    bounds = _bounds(limits or Limits(), ranking)
    least = {name: bounds.rounded(bounds.least(len(s), name), len(s)) for name, s in scores.items()}
    return original / cost(by_counts(scores, least, emptied=bounds.emptied).keep)


def greedily(choice: Choice, score_of: ScoreOf) -> Choice:
    """As many channels of each space as before, chosen in execution order by scores that know the earlier choices.

    Parameters
    ----------
    choice : Choice
        Its spaces are in execution order.
    score_of : callable
        Takes a space's name and the channels that the spaces before it keep.
    """
    keep: dict[str, list[int]] = {}
    for name, count in choice.counts.items():
        keep[name] = top(score_of(name, keep), count)
    return Choice(keep, choice.limited)


@dataclass(frozen=True, eq=False)
class _Steps:
    """Choices from all channels (step 0) to the fewest (step ``last``), each within the one before."""

    last: int
    choice: Callable[[int], Choice]


def _steps(scores: Mapping[str, Tensor], ranking: str, normalisation: str, limits: Limits) -> _Steps:
    if ranking == "global":
        order = Order.of(scores, limits, normalisation)
        return _Steps(order.most, lambda step: _ranked(scores, order, step, limits))
    # The ratios at which some space loses one channel more.
    ratios = sorted({dropped / len(s) for s in scores.values() for dropped in range(len(s))} or {0.0})
    return _Steps(len(ratios) - 1, lambda step: by_layer(scores, ratios[step], limits))


def _ranked(scores: Mapping[str, Tensor], order: Order, dropped: int, limits: Limits) -> Choice:
    counts, limited = order.counts(dropped)
    counts = {name: limits.rounded(n, order.widths[name]) for name, n in counts.items()}
    return by_counts(scores, counts, limited, emptied=limits.emptied)


def _bounds(limits: Limits, ranking: str) -> Limits:
    return limits.with_floor(FLOOR if check_choice("ranking", ranking, RANKINGS) == "global" else 0.0)


def _kept_words(limits: Limits) -> str:
    parts = [f"{100 * limits.floor:.0f} % of its channels"] if limits.floor else ["one channel"]
    return (
        " and ".join(parts + ([f"{100 * (1 - limits.cap):.0f} % by the cap"] if limits.cap < 1 else [])) + " at least"
    )


def _out_of_reach(
    scores: Mapping[str, Tensor], speedup: float, most: float, cost: Cost, whole: float, limits: Limits
) -> TargetError:
    """Names the greatest speed-up and the limits without which the target can be met."""
    loosened = {
        f"floor {limits.floor:g}": replace(limits, floor=0.0),
        f"cap {limits.cap:g}": replace(limits, cap=1.0),
        f"multiple {limits.multiple}": replace(limits, multiple=1),
        "floor, cap and multiple": replace(limits, floor=0.0, cap=1.0, multiple=1),
    }
    reached = {rule: greatest_speedup(scores, cost, whole, less) for rule, less in loosened.items() if less != limits}
    enough = [rule for rule, value in reached.items() if value >= speedup]
    free = _shown(max(reached.values(), default=most))
    # A speed-up of 1 is none: the commands refuse it.
    fix = f"ask for {_shown(most)} or less" if _shown(most) != "1x" else ""
    if enough:
        fix += (", or " if fix else "") + f"loosen {enough[0]} ({_shown(reached[enough[0]])} without it)"
    elif free not in (_shown(most), "1x"):
        fix += f" ({free} without floor, cap and multiple)" if fix else f"loosen floor, cap and multiple ({free} then)"
    rule = f"at most {_shown(most)} can be reached when each layer keeps {_kept_words(limits)}"
    if not scores:
        rule = "there are no channels that may go, so 1x is the most"
    return TargetError("speedup", rule, got=f"{speedup:g}x", fix=fix or "let other channels go")


def _shown(speedup: float) -> str:
    """A speed-up rounded down, so that a target of the number shown can be met."""
    return f"{math.floor(speedup * 100) / 100:g}x"
