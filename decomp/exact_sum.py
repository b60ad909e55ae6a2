"""Sums of tensors that do not depend on the order of their terms, nor on who adds which of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Entries that are added at a time on a CPU: all that a step needs stays in the cache.
ENTRIES = 1 << 15


class ExactSum:
    r"""Sum of tensors of one shape, each entry held as two float64 numbers: the rounded sum, and what rounding cut off.

    ``high`` is the sum by floating-point additions, and ``low`` the sum of their errors, each of which is computed
    without error (Knuth's TwoSum). The sum of both is as good as one in twice the precision of float64, rounded once
    (Ogita, Rump and Oishi 2005, "Accurate sum and dot product", algorithms 3.1 and 4.4).

    Terms in float32 have 24 bits, the two numbers 106. As long as the largest and the smallest term of an entry that
    are not zero differ by less than a factor of :math:`2^{82} / T^2`, for T terms, no bit is lost: the result is the
    exact sum, rounded once, in whatever order and groups it was added up. Terms in float64 leave an error of about
    :math:`2^{-105}` of their size, which moves the rounded result once in very many times.

    Parameters
    ----------
    shape : sequence of int
    device : torch.device or str
    """

    def __init__(self, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.high = torch.zeros(tuple(shape), dtype=torch.float64, device=device)
        self.low = torch.zeros_like(self.high)

    def add(self, term: Tensor) -> None:
        """Add a tensor of this shape, float32 or float64."""
        high, low = self.high.view(-1), self.low.view(-1)
        term = term.to(high.device).reshape(-1)
        size = ENTRIES if high.device.type == "cpu" else max(len(high), 1)
        for part in zip(high.split(size), low.split(size), term.split(size), strict=True):
            _add(*part)

    def merge(self, other: ExactSum) -> None:
        """Add the terms of another sum."""
        self.add(other.high)
        self.low += other.low.to(self.low.device)

    def rounded(self) -> Tensor:
        """The sum, as a new tensor, float64."""
        return self.high + self.low


def _add(high: Tensor, low: Tensor, term: Tensor) -> None:
    total = high + term
    of_term = total - high
    low += (high - (total - of_term)) + (term - of_term)
    high.copy_(total)
