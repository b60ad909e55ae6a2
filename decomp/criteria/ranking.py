"""Order in which channels are dropped: by their scores, within each layer or among all, with limits for each layer.

Equal scores are ordered by place: the channel that lies further back in its layer, relative to the layer's width, goes
first. So ties spread over all layers, and the order is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from decomp.allocation.sizes import fitting_multiple
from decomp.criteria.names import NORMALISATIONS
from decomp.errors import UsageError, check_choice

#: The share of a layer's channels that stays at least, where channels of all layers are ranked together.
FLOOR = 0.1
# A product such as 10 · 0.3 may lie just below the whole number that is meant.
_SLACK = 1e-9


@dataclass(frozen=True)
class Limits:
    """Limits on the channels that stay in each layer, beside one channel at least.

    Attributes
    ----------
    floor : float or None
        Share of the channels that stays at least, in [0, 1]. None is :data:`FLOOR` where the channels of all layers
        are ranked together, and 0 where each layer loses a share of its own.
    cap : float
        Largest share of the channels that goes, in [0, 1].
    multiple : int
        The number of channels that stay is a multiple of it, rounded up, where the layer is wide enough
        (:func:`decomp.allocation.sizes.fitting_multiple`).
    emptied : frozenset of str
        Layers that may lose all channels, without floor and cap.
    """

    floor: float | None = None
    cap: float = 1.0
    multiple: int = 1
    emptied: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, share in (("floor", self.floor), ("cap", self.cap)):
            if share is not None and not (isinstance(share, (int, float)) and 0 <= share <= 1):
                raise UsageError(name, "must be a share of a layer's channels, from 0 to 1", got=share)
        if not isinstance(self.multiple, int) or self.multiple < 1:
            raise UsageError("multiple", "must be a whole number from 1", got=self.multiple)

    def with_floor(self, share: float) -> Limits:
        """The same limits with this floor where none is given."""
        return self if self.floor is not None else replace(self, floor=share)

    def least(self, width: int, name: str | None = None) -> int:
        """Fewest channels that stay of a layer of this width."""
        if name in self.emptied:
            return 0
        by_floor = math.ceil((self.floor or 0.0) * width - _SLACK)
        return max(1, by_floor, width - math.floor(self.cap * width + _SLACK))

    def rounded(self, count: int, width: int) -> int:
        """The count itself, or the next multiple above it, or all channels."""
        multiple = fitting_multiple(width, self.multiple)
        return min(width, -(-count // multiple) * multiple)


def rounded_down(count: float) -> int:
    """The whole number at or below a computed count of channels, past its rounding error: 10·(1 − 0.9) is 1."""
    return math.floor(count + _SLACK)


def normalised(scores: Mapping[str, Tensor], rule: str) -> dict[str, Tensor]:
    """Scores of each layer divided by a number of its own, so that layers of different size can be compared.

    Parameters
    ----------
    scores : mapping of str to torch.Tensor of float64
    rule : {'none', 'mean', 'max', 'l2'}
        Divisor: 1; the mean or largest absolute score of the layer; the square root of the sum of squares of its
        scores. Scores that are all zero stay.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    UsageError
        For another rule.
    """
    check_choice("normalisation", rule, NORMALISATIONS)
    divisors = {
        name: {"none": torch.ones(()), "mean": s.abs().mean(), "max": s.abs().max(), "l2": s.norm()}[rule]
        for name, s in scores.items()
    }
    return {name: s / divisors[name] if divisors[name] > 0 else s for name, s in scores.items()}


def top(scores: Tensor, count: int) -> list[int]:
    """Ascending places of the channels with the highest scores; of equal ones those in front."""
    order = np.argsort(-scores.numpy(), kind="stable")[:count]
    return sorted(order.tolist())


@dataclass(frozen=True, eq=False)
class Order:
    """Channels of all layers in the order in which they go.

    Attributes
    ----------
    widths : dict of str to int
    least : dict of str to int
        Channels of each layer that stay in any case.
    layers : numpy.ndarray of int64
        For every channel in the order, the index of its layer in ``widths``; the last ones of each layer, which stay
        in any case, are among them.
    """

    widths: dict[str, int]
    least: dict[str, int]
    layers: np.ndarray

    @classmethod
    def of(cls, scores: Mapping[str, Tensor], limits: Limits, normalisation: str) -> Order:
        """The order by the scores of all layers together."""
        values = normalised(scores, normalisation)
        widths = {name: len(s) for name, s in values.items()}
        least = {name: limits.least(width, name) for name, width in widths.items()}
        if not widths:
            return cls(widths, least, np.empty(0, dtype=np.int64))
        layers = np.concatenate([np.full(width, i) for i, width in enumerate(widths.values())])
        places = np.concatenate([(np.arange(width) + 0.5) / width for width in widths.values()])
        numbers = np.concatenate([s.numpy() for s in values.values()])
        return cls(widths, least, layers[np.lexsort((layers, -places, numbers))])

    @property
    def most(self) -> int:
        """How many channels can go."""
        return sum(self.widths.values()) - sum(self.least.values())

    def counts(self, dropped: int) -> tuple[dict[str, int], tuple[str, ...]]:
        """How many channels of each layer stay when so many go, and the layers that the limits kept from losing more.

        Parameters
        ----------
        dropped : int
            In 0..most. Where a layer has reached its limit, the next channels in the order go instead.
        """
        names, left, limited = list(self.widths), dict(self.widths), dict.fromkeys(self.widths, False)
        for index in self.layers.tolist():
            if not dropped:
                break
            name = names[index]
            if left[name] > self.least[name]:
                left[name] -= 1
                dropped -= 1
            else:
                limited[name] = True
        return left, tuple(name for name in names if limited[name])
