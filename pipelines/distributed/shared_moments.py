"""Moments of the rows of all processes, and solvers that work in step on rows of which each process has a share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from decomp.exact_sum import ExactSum

from .process_group import count, exact_total, exact_total_for, from_number, joined, number

Found = TypeVar("Found", covariant=True)


class Processes:
    """Holders of rows, see :class:`decomp.problem.holders.Holders`: all processes of the job."""

    def summed(self, *sums: ExactSum) -> tuple[Tensor, ...]:
        """Sums over the rows of all processes, in one exchange."""
        if count() == 1:
            return tuple(one.rounded() for one in sums)
        together = ExactSum((sum(one.high.numel() for one in sums),), sums[0].high.device)
        together.high = torch.cat([one.high.flatten() for one in sums])
        together.low = torch.cat([one.low.flatten() for one in sums])
        parts = exact_total(together).split([one.high.numel() for one in sums])
        return tuple(part.view(one.high.shape) for part, one in zip(parts, sums))

    def agreed(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Tensors of the first process, in the order in memory that they have here."""
        return tuple(from_number(0, value) for value in values)


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
    tiles = joined(own.tiles)
    totals = [exact_total_for(owner, one) for one in own.sums] if len(tiles) else []
    if owner not in (None, number()):
        return None
    return own.finished([total for total in totals if total is not None] or [one.high for one in own.sums], tiles)
