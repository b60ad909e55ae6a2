"""Holders of a problem's rows: one process that has all of them, or several of which each has a share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from decomp.exact_sum import ExactSum

Found = TypeVar("Found")


class Holders(Protocol):
    """Processes that hold the rows of one problem together and solve it in step.

    All of them call the same methods in the same order.
    """

    def summed(self, *sums: ExactSum) -> tuple[Tensor, ...]:
        """Sums over the rows of all holders, rounded to float64; each of them gets the same bits."""

    def agreed(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Tensors as the first holder has them: other machines may round otherwise."""

    def each(self, tasks: Sequence[Callable[[], Found]]) -> list[Found]:
        """Results of functions that need no rows, each called by one holder; they hold no tensor of a GPU."""


class Alone:
    """The one process that has all rows."""

    def summed(self, *sums: ExactSum) -> tuple[Tensor, ...]:
        """These sums."""
        return tuple(one.rounded() for one in sums)

    def agreed(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The same tensors."""
        return values

    def each(self, tasks: Sequence[Callable[[], Found]]) -> list[Found]:
        """Results of the functions."""
        return [task() for task in tasks]


ALONE = Alone()
