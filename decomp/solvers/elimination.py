"""Backward elimination of input channels, each step the exact least-squares cost (group optimal brain surgeon)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decomp.errors import DecompError, NumericalError
from decomp.problem.layer_problem import LayerProblem, columns_of
from decomp.problem.moments import FEW
from decomp.solvers.few_rows import FewRows
from decomp.solvers.linalg import EVIDENCE, Ridge, choose_ridge, factorise, metric_roots, ridge_value

# Channels whose down-dates of K⁻¹ are collected and applied in one product.
DELAY = 32
# Channels of least cost among which several are removed before the costs of all others are computed again.
CANDIDATES = 32
# Of more channels than this, one may go that costs this share more than the cheapest did: half as many computations.
MANY, SLACK = 128, 0.03


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
    Stork 1993). Among the `CANDIDATES` of least cost channels are removed one by one, with exact costs, as long as the
    next one costs no more than any other channel did before (`SLACK`); then all costs are computed again. Down-dates
    of P are collected and applied `DELAY` at a time, and P is computed afresh each time half of the channels are
    removed. With few rows it is never formed (`FewRowsElimination`).

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
        few, area = self.problem.moments.root, self.problem.kernel[0] * self.problem.kernel[1]
        kind = BlockElimination
        if few is not None and self.penalty > 0 and len(channels) * area >= FEW * len(few):
            kind = FewRowsElimination
        return kind(self.problem, self.right, self.prior, channels, self.penalty)


class BlockElimination:
    """P = (K + λI)⁻¹ and the coefficients on a set of channels, and their down-dates."""

    def __init__(self, problem: LayerProblem, right: Tensor, prior: Tensor, channels: Tensor, penalty: float) -> None:
        self.name, self.area = problem.name, problem.kernel[0] * problem.kernel[1]
        columns = columns_of(channels, problem.kernel).to(right.device)
        self.right, prior = right.index_select(0, columns), prior.index_select(0, columns)
        # The penalty for a channel's distance from its prior; it is no longer due once the channel is removed.
        self.refund = penalty * prior.square().view(len(channels), -1).sum(dim=1).cpu().numpy()
        self.constant = penalty * float(prior.square().sum())
        self.numbers = channels.tolist()
        self.alive = np.ones(len(channels), dtype=bool)
        self.waiting: list[Tensor] = []
        self.B = self._solve(problem, columns, prior, penalty)
        self.diagonal = self._diagonal_blocks()

    def explained(self) -> float:
        """Reduction of the penalised squared error by the full fit: tr Bᵀ(C + λW) − λ tr WᵀW."""
        return float((self.right * self.B).sum()) - self.constant

    def channels(self) -> Tensor:
        """Numbers of the remaining channels."""
        return torch.tensor([n for n, alive in zip(self.numbers, self.alive) if alive])

    def run(self, count: int) -> Iterator[tuple[int, float]]:
        """Remove ``count`` channels; yields the number and cost of each."""
        while count > 0:
            found = self._cheapest(count)
            yield from ((self.numbers[place], cost) for place, cost in found)
            count -= len(found)
            self._remove([place for place, _ in found])

    def costs(self) -> tuple[np.ndarray, Tensor]:
        """Cost of removing each channel, and the Cholesky factors of its block; in the order of ``numbers``."""
        c = len(self.numbers)
        factors, info = torch.linalg.cholesky_ex(self.diagonal)
        if int(info.abs().max()):
            raise self._not_definite()
        whitened = torch.linalg.solve_triangular(factors, self.B.view(c, self.area, -1), upper=False)
        return whitened.square().sum(dim=(1, 2)).cpu().numpy() - self.refund, factors

    def remove(self, i: int, factor: Tensor) -> None:
        """Remove the channel at index ``i`` of ``numbers``; ``factor`` is that of its block."""
        self._remove([i], factor)

    def one_by_one(self, count: int) -> Iterator[tuple[int, float]]:
        """Remove ``count`` channels, with the costs of all of them before each; yields the number and cost of each."""
        for _ in range(count):
            costs, factors = self.costs()
            costs = np.where(self.alive, costs, np.inf)
            i = int(np.argmin(costs))
            yield self.numbers[i], float(costs[i])
            self.remove(i, factors[i])

    def _cheapest(self, count: int) -> list[tuple[int, float]]:
        """Places and costs of the channels to remove next, in this order; at least one and at most ``count``."""
        costs = np.where(self.alive, self.costs()[0], np.inf)
        order = np.argsort(costs, kind="stable")[: int(self.alive.sum())]
        bound = float(costs[order[CANDIDATES]]) if len(order) > CANDIDATES else np.inf
        if len(order) > MANY:
            bound *= 1 + SLACK
        found: list[tuple[int, float]] = []
        within = self._within(sorted(int(i) for i in order[:CANDIDATES]))
        # The removal of a channel makes others dearer, so what costs no more than the others did is the cheapest.
        for place, cost in within.one_by_one(min(count, len(within.numbers))):
            if found and cost > bound:
                break
            found.append((place, cost))
        return found

    def _within(self, places: list[int]) -> BlockElimination:
        """The elimination among the channels at some places; the places are its numbers.

        It has their blocks of P and B only: enough for exact costs until another channel is removed.
        """
        own = self._inputs(places)
        part = object.__new__(BlockElimination)
        part.name, part.area, part.numbers, part.waiting = self.name, self.area, places, []
        part.P, part.B, part.refund = self._columns(own, own), self.B.index_select(0, own), self.refund[places]
        part.alive, part.diagonal = np.ones(len(places), dtype=bool), part._diagonal_blocks()
        return part

    def _remove(self, places: Sequence[int], factor: Tensor | None = None) -> None:
        """Remove the channels at some places; ``factor`` is the Cholesky factor of their block of P."""
        c, own = len(self.numbers), self._inputs(places)
        columns = self._columns(own)
        if factor is None:
            factor, info = torch.linalg.cholesky_ex(columns.index_select(0, own))
            if int(info):
                raise self._not_definite()
        # P − P_·i P_ii⁻¹ P_i· = P − W Wᵀ with W = P_·i L⁻ᵀ, P_ii = L Lᵀ; the same W takes B_i out of B.
        W = torch.linalg.solve_triangular(factor, columns.T, upper=False).T.contiguous()
        self.B -= W @ torch.linalg.solve_triangular(factor, self.B.index_select(0, own), upper=False)
        blocks = W.view(c, self.area, -1)
        self.diagonal -= blocks @ blocks.transpose(1, 2)
        # Entries of a removed channel are exactly zero from here on; its own block must stay factorisable.
        self.B[own] = 0
        self.diagonal[list(places)] = torch.eye(self.area, dtype=W.dtype, device=W.device)
        self.alive[list(places)] = False
        self._down_date(W, own, factor)

    def _inputs(self, places: Sequence[int]) -> Tensor:
        """Rows of P and B that belong to the channels at some places."""
        return columns_of(torch.tensor(places, dtype=torch.int64), (self.area, 1)).to(self.B.device)

    def _not_definite(self) -> NumericalError:
        return NumericalError(
            self.name, "blocks of the inverse of K must be positive definite", fix="raise the ridge"
        )  # fmt: skip

    def _solve(self, problem: LayerProblem, columns: Tensor, prior: Tensor, penalty: float) -> Tensor:
        """Compute P; returns B."""
        K = problem.moments.K.index_select(0, columns).index_select(1, columns)
        mean_diagonal = float(K.diagonal().mean()) or 1.0
        L, _ = factorise(K, penalty / mean_diagonal, name=problem.name)
        del K
        self.P = torch.cholesky_inverse(L)
        return torch.cholesky_solve(self.right, L)

    def _diagonal_blocks(self) -> Tensor:
        c = len(self.numbers)
        blocks = self.P.view(c, self.area, c, self.area).diagonal(dim1=0, dim2=2)
        return blocks.permute(2, 0, 1).contiguous()

    def _columns(self, own: Tensor, rows: Tensor | None = None) -> Tensor:
        """Columns of P, of all or of some rows."""
        P = self.P if rows is None else self.P.index_select(0, rows)
        columns = P.index_select(1, own)
        if self.waiting:
            done = torch.cat(self.waiting, dim=1)
            columns = columns - (done if rows is None else done[rows]) @ done[own].T
        return columns

    def _down_date(self, W: Tensor, own: Tensor, factor: Tensor) -> None:
        """Take W Wᵀ out of P, now or later."""
        self.waiting.append(W)
        if sum(W.shape[1] for W in self.waiting) >= DELAY * self.area:
            done = torch.cat(self.waiting, dim=1)
            self.waiting = []
            self.P.addmm_(done, done.T, alpha=-1)
            self._compact()

    def _compact(self) -> None:
        """Drop the rows and columns of removed channels."""
        stay = np.flatnonzero(self.alive)
        columns = self._inputs(stay.tolist())
        self._take(columns)
        self.B, self.refund = self.B.index_select(0, columns), self.refund[self.alive]
        self.numbers = [self.numbers[i] for i in stay.tolist()]
        self.alive = np.ones(len(stay), dtype=bool)
        # Recomputed from P, so that the blocks and P do not drift apart.
        self.diagonal = self._diagonal_blocks()

    def _take(self, columns: Tensor) -> None:
        self.P = self.P.index_select(0, columns).index_select(1, columns)


class FewRowsElimination(BlockElimination):
    r"""The same for few rows: K = RᵀR with R of fewer rows than half of its columns, see `Moments.root`.

    .. math:: P = (R^T R + \lambda I)^{-1} = (I - R^T A R) / \lambda, \qquad A = (R R^T + \lambda I)^{-1}

    Only A, of the size of the rows, is down-dated: without the columns R_i it is
    :math:`A + A R_i (\lambda P_{ii})^{-1} R_i^T A`.
    """

    def _solve(self, problem: LayerProblem, columns: Tensor, prior: Tensor, penalty: float) -> Tensor:
        root = problem.moments.root
        assert root is not None
        self.R, self.penalty = root.index_select(1, columns), penalty
        shifted = self.R @ self.R.T
        shifted.diagonal().add_(penalty)
        self.A = torch.cholesky_inverse(torch.linalg.cholesky(shifted))
        # (K + λI)⁻¹(C + λW) = W + (K + λI)⁻¹(C − KW), where C − KW lies in the span of the rows.
        right = self.right - penalty * prior - self.R.T @ (self.R @ prior)
        return prior + FewRows(self.R).solve(right, penalty)

    def _diagonal_blocks(self) -> Tensor:
        by_channel = self.R.view(len(self.R), -1, self.area).permute(1, 2, 0)
        products = by_channel @ (self.A @ self.R).view(len(self.R), -1, self.area).transpose(0, 1)
        return (torch.eye(self.area).to(products) - products) / self.penalty

    def _columns(self, own: Tensor, rows: Tensor | None = None) -> Tensor:
        R = self.R if rows is None else self.R.index_select(1, rows)
        columns = R.T @ (self.A @ self.R.index_select(1, own))
        ones = own[:, None] == (torch.arange(R.shape[1], device=own.device) if rows is None else rows)
        return (ones.T.to(columns) - columns) / self.penalty

    def _down_date(self, W: Tensor, own: Tensor, factor: Tensor) -> None:
        change = self.A @ self.R.index_select(1, own)
        change = torch.linalg.solve_triangular(factor, change.T, upper=False)
        self.A.addmm_(change.T, change, alpha=1 / self.penalty)
        self.R[:, own] = 0
        if (~self.alive).sum() >= DELAY:
            self._compact()

    def _take(self, columns: Tensor) -> None:
        self.R = self.R.index_select(1, columns)
