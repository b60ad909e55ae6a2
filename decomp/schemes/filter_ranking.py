"""Choice of the filters to drop: one list over all layers, with a least number kept in each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from decomp.errors import check_choice
from decomp.schemes.repr_settings import ORDERS

#: Scores that differ by less are ties: the number of threads must not decide between equal filters.
_DECIMALS = 12


def share_of(n: int, share: float) -> int:
    """floor(share · n), exact for shares that decimals give: 0.29 of 100 is 29."""
    return math.floor(share * n + 1e-9)


def least_kept(width: int, min_keep: float) -> int:
    """Filters that a layer of this width keeps at least: ceil(min_keep · width), and never none."""
    return max(1, math.ceil(min_keep * width - 1e-9))


def choose_dropped(
    scores: Sequence[torch.Tensor],
    dead: Sequence[torch.Tensor],
    share: float,
    *,
    min_keep: float = 0.0,
    order: str = "overlap",
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The filters to drop of each layer: the first floor(share · n) of one list over all n filters.

    Parameters
    ----------
    scores : sequence of torch.Tensor, each of shape (J,)
        Per layer the score of each filter, computed inside the layer.
    dead : sequence of torch.Tensor of bool, each of shape (J,)
        Filters without weights; they are dropped first, since they do nothing that could be lost.
    share : float
        In 0..1.
    min_keep : float
        Share of each layer that stays; see `least_kept`. Filters that would go below it are passed over, so fewer may
        be dropped than asked where all layers are at their floor.
    order : {'overlap', 'reversed', 'random'}
        Highest score first; for studies, lowest score first, or a random order.
    generator : torch.Generator, optional
        For the random order.

    Returns
    -------
    list of list of int
        Ascending filter numbers per layer. Ties are broken by the place of the layer, then of the filter.
    """
    check_choice("order", order, ORDERS)
    units = [(layer, f) for layer, values in enumerate(scores) for f in range(len(values))]
    if order == "random":
        units = [units[i] for i in torch.randperm(len(units), generator=generator).tolist()]
    else:
        sign = -1 if order == "overlap" else 1
        ranks = [[round(sign * value, _DECIMALS) for value in values.tolist()] for values in scores]
        alive = [(~values).tolist() for values in dead]
        units.sort(key=lambda unit: (alive[unit[0]][unit[1]], ranks[unit[0]][unit[1]], unit))
    left = share_of(len(units), share)
    room = [len(values) - least_kept(len(values), min_keep) for values in scores]
    dropped: list[list[int]] = [[] for _ in scores]
    for layer, f in units:
        if left and len(dropped[layer]) < room[layer]:
            dropped[layer].append(f)
            left -= 1
    return [sorted(filters) for filters in dropped]
