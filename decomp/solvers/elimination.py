"""Backward elimination of input channels, each step the exact least-squares cost (group optimal brain surgeon)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decomp.errors import DecompError, NumericalError
from decomp.problem.layer_problem import LayerProblem, columns_of
from decomp.solvers.linalg import EVIDENCE, Ridge, choose_ridge, factorise, metric_roots, ridge_value

# Down-dates of K⁻¹ that are collected and applied in one product.
DELAY = 32


@dataclass(frozen=True, eq=False)
class Elimination:
    """Result of a backward elimination.

    Parameters
    ----------
    order : list of int
        Channels in the order of their removal.
    errors : list of float
        Relative penalised error with all channels, then after each elimination, the other weights refitted.
    report : dict
    """

    order: list[int]
    errors: list[float]
    report: dict[str, Any] = field(default_factory=dict)


def eliminate(problem: LayerProblem, stop_at: int = 1, *, ridge: Ridge = EVIDENCE) -> Elimination:
    r"""Remove channels one by one, each time the one of least cost after all others are refitted.

    With P = (K + λI)⁻¹ and B = P (C + λW) over the remaining channels, the least-squares solution with a ridge
    towards the old weights W, removing channel i raises the penalised squared error by

    .. math:: tr\,F B_i^T (P_{ii})^{-1} B_i - \lambda\,tr\,F W_i^T W_i

    exactly; then P and B are down-dated by the block i (the group form of optimal brain surgeon, Hassibi and
    Stork 1993). Down-dates of P are collected and applied `DELAY` at a time, and P is computed afresh each time
    half of the channels are removed.

    Parameters
    ----------
    problem : LayerProblem
    stop_at : int
        Number of channels kept, 1..c.
    ridge : float or 'evidence'
        λ relative to the mean diagonal of K; 'evidence' chooses it once, for all channels and no prior.

    Returns
    -------
    Elimination

    Raises
    ------
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    problem.checked()
    if not 1 <= stop_at <= problem.n_channels:
        rule = f"the number of channels kept must be in 1..{problem.n_channels} (c)"
        raise DecompError(problem.name, rule, got=stop_at)
    regression = EliminationRegression(problem, ridge)
    total, channels = regression.total, torch.arange(problem.n_channels)
    order: list[int] = []
    squared: list[float] = []
    while True:
        stage = regression.on(channels)
        if not squared:
            squared.append(total - stage.explained())
        for channel, cost in stage.run(len(channels) - max(stop_at, len(channels) // 2)):
            order.append(channel)
            squared.append(squared[-1] + cost)
        channels = stage.channels()
        if len(channels) <= stop_at:
            break
    errors = [max(value, 0.0) / total if total > 0 else 0.0 for value in squared]
    return Elimination(order, errors, {"selector": "backward", "ridge": regression.ridge})


class EliminationRegression:
    """The ridge regression from which channels are removed: C + λW, W, λ and the squared size of the responses.

    Parameters
    ----------
    problem : LayerProblem
    ridge : float or 'evidence'
        As in `eliminate`.
    """

    def __init__(self, problem: LayerProblem, ridge: Ridge = EVIDENCE) -> None:
        moments, metric, prior = problem.moments, problem.float64_metric(), problem.matrix()
        if ridge == EVIDENCE:
            # Without the prior: on all channels it may be exact, which says nothing about the fits on fewer channels.
            self.ridge = choose_ridge(moments)
        else:
            _, self.ridge = factorise(moments.K, ridge_value(moments, ridge), name=problem.name)
        # An absolute ridge: the same regression on fewer channels, not a new one at each refresh.
        self.penalty = self.ridge * (float(moments.K.diagonal().mean()) or 1.0)
        if metric is None:
            right, total = moments.C + self.penalty * prior, float(moments.S.trace())
        else:
            root = metric_roots(metric)[0]
            right, prior = (moments.C + self.penalty * prior) @ root, prior @ root
            total = float((root * (moments.S @ root)).sum())
        self.problem, self.right, self.prior, self.total = problem, right, prior, total

    def on(self, channels: Tensor) -> BlockElimination:
        """The elimination that starts with these channels only."""
        return BlockElimination(self.problem, self.right, self.prior, channels, self.penalty)


class BlockElimination:
    """K⁻¹ and the coefficients on a set of channels, and their down-dates."""

    def __init__(self, problem: LayerProblem, right: Tensor, prior: Tensor, channels: Tensor, penalty: float) -> None:
        self.name, self.area = problem.name, problem.kernel[0] * problem.kernel[1]
        columns = columns_of(channels, problem.kernel).to(right.device)
        K = problem.moments.K.index_select(0, columns).index_select(1, columns)
        mean_diagonal = float(K.diagonal().mean()) or 1.0
        L, _ = factorise(K, penalty / mean_diagonal, name=problem.name)
        del K
        self.right, prior = right.index_select(0, columns), prior.index_select(0, columns)
        # The penalty for a channel's distance from its prior; it is no longer due once the channel is removed.
        self.refund = penalty * prior.square().view(len(channels), -1).sum(dim=1).cpu().numpy()
        self.constant = penalty * float(prior.square().sum())
        self.B = torch.cholesky_solve(self.right, L)
        self.P = torch.cholesky_inverse(L)
        self.numbers = channels.tolist()
        self.alive = np.ones(len(channels), dtype=bool)
        self.diagonal = self._diagonal_blocks()
        self.waiting: list[Tensor] = []

    def _diagonal_blocks(self) -> Tensor:
        c = len(self.numbers)
        blocks = self.P.view(c, self.area, c, self.area).diagonal(dim1=0, dim2=2)
        return blocks.permute(2, 0, 1).contiguous()

    def explained(self) -> float:
        """Reduction of the penalised squared error by the full fit: tr Bᵀ(C + λW) − λ tr WᵀW."""
        return float((self.right * self.B).sum()) - self.constant

    def channels(self) -> Tensor:
        """Numbers of the remaining channels."""
        return torch.tensor([n for n, alive in zip(self.numbers, self.alive) if alive])

    def run(self, count: int) -> Iterator[tuple[int, float]]:
        """Remove ``count`` channels; yields the number and cost of each."""
        for _ in range(count):
            costs, factors = self.costs()
            costs = np.where(self.alive, costs, np.inf)
            i = int(np.argmin(costs))
            yield self.numbers[i], float(costs[i])
            self.remove(i, factors[i])

    def costs(self) -> tuple[np.ndarray, Tensor]:
        """Cost of removing each channel, and the Cholesky factors of its block; in the order of ``numbers``."""
        c = len(self.numbers)
        factors, info = torch.linalg.cholesky_ex(self.diagonal)
        if int(info.abs().max()):
            raise NumericalError(
                self.name, "blocks of the inverse of K must be positive definite", fix="raise the ridge"
            )
        whitened = torch.linalg.solve_triangular(factors, self.B.view(c, self.area, -1), upper=False)
        return whitened.square().sum(dim=(1, 2)).cpu().numpy() - self.refund, factors

    def remove(self, i: int, factor: Tensor) -> None:
        """Remove the channel at index ``i`` of ``numbers``."""
        self.alive[i] = False
        c, own = len(self.numbers), slice(i * self.area, (i + 1) * self.area)
        column = self.P[:, own]
        if self.waiting:
            done = torch.cat(self.waiting, dim=1)
            column = column - done @ done[own].T
        # P − P_·i P_ii⁻¹ P_i· = P − W Wᵀ with W = P_·i L⁻ᵀ, P_ii = L Lᵀ; the same W takes B_i out of B.
        W = torch.linalg.solve_triangular(factor, column.T, upper=False).T.contiguous()
        self.B -= W @ torch.linalg.solve_triangular(factor, self.B[own], upper=False)
        blocks = W.view(c, self.area, self.area)
        self.diagonal -= blocks @ blocks.transpose(1, 2)
        # Entries of a removed channel are exactly zero from here on; its own block must stay factorisable.
        self.B[own] = 0
        self.diagonal[i] = torch.eye(self.area, dtype=W.dtype, device=W.device)
        self.waiting.append(W)
        if len(self.waiting) == DELAY:
            done = torch.cat(self.waiting, dim=1)
            self.waiting = []
            self.P.addmm_(done, done.T, alpha=-1)
            self._compact()

    def _compact(self) -> None:
        """Drop the rows and columns of removed channels."""
        stay = torch.from_numpy(np.flatnonzero(self.alive))
        columns = columns_of(stay, (self.area, 1)).to(self.P.device)
        self.P = self.P.index_select(0, columns).index_select(1, columns)
        self.B, self.refund = self.B.index_select(0, columns), self.refund[self.alive]
        self.numbers = [self.numbers[i] for i in stay.tolist()]
        self.alive = np.ones(len(stay), dtype=bool)
        # Recomputed from P, so that the blocks and P do not drift apart.
        self.diagonal = self._diagonal_blocks()
