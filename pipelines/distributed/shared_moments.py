"""Moments of the rows of all processes, and solvers that work in step on rows of which each process has a share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from decomp.exact_sum import ExactSum

from .process_group import count, exact_total_for, from_number, gathered, joined, number

#: Entries of sums that are exchanged together: a process takes four times their bytes meanwhile.
EXCHANGED = 1 << 22

Found = TypeVar("Found", covariant=True)
Result = TypeVar("Result")


class Processes:
    """Holders of rows, see :class:`decomp.problem.holders.Holders`: all processes of the job."""

    def summed(self, *sums: ExactSum) -> tuple[Tensor, ...]:
        """Sums over the rows of all processes, in one exchange."""
        return tuple(_totals(sums, None))

    def agreed(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Tensors of the first process, in the order in memory that they have here."""
        return tuple(from_number(0, value) for value in values)

    def each(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Results of functions, each called by one process; they hold no tensor of a GPU."""
        if count() == 1:
            return [task() for task in tasks]
        own = {place: task() for place, task in enumerate(tasks) if place % count() == number()}
        found = {place: result for of_one in gathered(own) for place, result in of_one.items()}
        return [found[place] for place in range(len(tasks))]


class SumOfRows(Protocol[Found]):
    """Moments that are being added up, such as :class:`decomp.problem.moments.MomentSum`."""

    sums: list[ExactSum]

    @property
    def tiles(self) -> Tensor:
        """Means and numbers of rows of the tiles."""

    def finished(self, sums: Sequence[Tensor], tiles: Tensor) -> Found:
        """Moments from sums and tiles."""


def moments_of_all(own: SumOfRows[Found], owner: int | None = None) -> Found | None:
    """Moments of the rows of all processes together: the bits of one process that has the same tiles.

    Parameters
    ----------
    own : MomentSum or ChannelMomentSum
        Of this process's rows, perhaps of none. The processes have the tiles of all rows in their order.
    owner : int, optional
        The process that gets them, the others get None; all get them where it is not given.
    """
    tiles, totals = joined(own.tiles), list[Tensor]()
    sizes, start = [one.high.numel() for one in own.sums], 0
    for place in range(len(sizes)):
        if place + 1 == len(sizes) or sum(sizes[start : place + 2]) > EXCHANGED:
            totals += _totals(own.sums[start : place + 1], owner)
            start = place + 1
    return own.finished(totals, tiles) if owner in (None, number()) else None


def _totals(sums: Sequence[ExactSum], owner: int | None) -> list[Tensor]:
    """Some sums over all processes in one exchange; nothing in processes that do not get them."""
    if count() == 1:
        return [one.rounded() for one in sums]
    together = ExactSum((0,), sums[0].high.device)
    together.high = torch.cat([one.high.flatten() for one in sums])
    together.low = torch.cat([one.low.flatten() for one in sums])
    total = exact_total_for(owner, together)
    if total is None:
        return []
    parts = total.split([one.high.numel() for one in sums])
    return [part.view(one.high.shape) for part, one in zip(parts, sums)]
