"""Moments of the rows of all processes, and solvers that work in step on rows of which each process has a share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from decomp.problem.channel_moments import ChannelMoments
from decomp.problem.moments import TILE_COLUMNS, Moments

from .process_group import count, from_number, gathered, number, summed


class Processes:
    """Holders of rows, see :class:`decomp.problem.holders.Holders`: all processes of the job."""

    def summed(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Sums of tensors over all processes, in one exchange."""
        if count() == 1:
            return values
        total = summed(torch.cat([value.to(torch.float64).flatten() for value in values]))
        parts = total.split([value.numel() for value in values])
        return tuple(part.reshape(value.shape) for part, value in zip(parts, values))

    def agreed(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Tensors of the first process, in the order in memory that they have here."""
        return tuple(from_number(0, value) for value in values)


def moments_of_all(own: Moments, owner: int | None = None) -> Moments | None:
    """Moments of the rows of all processes together.

    Parameters
    ----------
    own : Moments
        Of this process's rows, perhaps of none; its entries are changed.
    owner : int, optional
        The process that gets them, the others get None; all get the same bits where it is not given.

    Notes
    -----
    With the mean m of all N rows, and m_r and K_r of the N_r rows of a process, K = Σ K_r + N_r (m_r − m)(m_r − m)ᵀ
    (Chan, Golub and LeVeque 1979). Means are taken from those of one process on, so that inputs which do not vary
    come out as exactly zero. Of the symmetric matrices one half is exchanged.
    """
    if count() == 1:
        return own
    total = sum(gathered(own.n_rows))
    if not total:
        return own if owner in (None, number()) else None
    n_inputs = len(own.x_mean)
    means, distance = _means_of_all(torch.cat([own.x_mean, own.y_mean]), own.n_rows)
    dx, dy = distance[:n_inputs], distance[n_inputs:]
    for place in range(0, n_inputs, TILE_COLUMNS):
        block = slice(place, place + TILE_COLUMNS)
        own.K[block] += torch.outer(dx[block], dx)
    own.C += torch.outer(dx, dy)
    own.S += torch.outer(dy, dy)
    for matrix in (own.K, own.S):
        _sum_symmetric(matrix, owner)
    C = summed(own.C, owner)
    if owner not in (None, number()):
        return None
    return Moments(own.K, C, own.S, means[:n_inputs], means[n_inputs:], total)


def channel_moments_of_all(own: ChannelMoments) -> ChannelMoments:
    """Moments of the channels of a depthwise convolution on the rows of all processes together."""
    total = sum(gathered(own.n_rows))
    if count() == 1 or not total:
        return own
    n_inputs = own.x_mean.shape[1]
    means, distance = _means_of_all(torch.cat([own.x_mean, own.y_mean], 1), own.n_rows)
    dx, dy = distance[:, :n_inputs], distance[:, n_inputs:]
    K, C, S = Processes().summed(
        own.K + dx[:, :, None] * dx[:, None], own.C + dx[:, :, None] * dy[:, None],
        own.S + dy[:, :, None] * dy[:, None],
    )  # fmt: skip
    return ChannelMoments(K, C, S, means[:, :n_inputs], means[:, n_inputs:], total)


def _means_of_all(own: Tensor, n_own: int) -> tuple[Tensor, Tensor]:
    """Means over all rows, and this process's distance to them times the root of its number of rows."""
    n_rows = gathered(n_own)
    start = from_number(next(rank for rank, rows in enumerate(n_rows) if rows), own)
    away = own - start if n_own else torch.zeros_like(own)
    shift = summed(away * float(n_own)) / sum(n_rows)
    return start + shift, (away - shift) * math.sqrt(n_own)


def _sum_symmetric(matrix: Tensor, owner: int | None) -> None:
    """Sum a symmetric matrix in place, by its rows from the diagonal on: it stays symmetric to the last bit."""
    for start in range(0, len(matrix), TILE_COLUMNS):
        stop = min(start + TILE_COLUMNS, len(matrix))
        block = summed(matrix[start:stop, start:], owner)
        inside = block[:, : stop - start].triu()
        matrix[start:stop, start:] = block
        matrix[start:stop, start:stop] = inside + inside.triu(1).T
        matrix[stop:, start:stop] = block[:, stop - start :].T
