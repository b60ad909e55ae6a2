"""Backward elimination of input channels, each step the exact least-squares cost (group optimal brain surgeon)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decomp.errors import DecompError, NumericalError
from decomp.problem.layer_problem import LayerProblem, columns_of
from decomp.problem.moments import FEW
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
        self.penalty = self.ridge * (moments.mean_diagonal() or 1.0)
        root = None if metric is None else metric_roots(metric)[0]
        if root is None:
            right, total = moments.C + self.penalty * prior, float(moments.S.trace())
        else:
            right, prior = (moments.C + self.penalty * prior) @ root, prior @ root
            total = float((root * (moments.S @ root)).sum())
        self.problem, self.right, self.prior, self.total = problem, right, prior, total
        #: Responses by the rows of moments that have a root.
        self.by_rows: Tensor | None = None
        if moments.root is not None:
            self.by_rows = moments.by_rows if root is None else moments.by_rows @ root

    def on(self, channels: Tensor) -> BlockElimination:
        """The elimination that starts with these channels only."""
        few, area = self.problem.moments.root, self.problem.kernel[0] * self.problem.kernel[1]
        kind = BlockElimination
        if few is not None and self.penalty > 0 and len(channels) * area >= FEW * len(few):
            kind = FewRowsElimination
        return kind(self, channels)


class BlockElimination:
    """P = (K + λI)⁻¹ and the coefficients on a set of channels, and their down-dates."""

    def __init__(self, regression: EliminationRegression, channels: Tensor) -> None:
        problem, penalty = regression.problem, regression.penalty
        self.name, self.area = problem.name, problem.kernel[0] * problem.kernel[1]
        columns = columns_of(channels, problem.kernel).to(regression.right.device)
        prior, self.right = (one.index_select(0, columns) for one in (regression.prior, regression.right))
        # The penalty for a channel's distance from its prior; it is no longer due once the channel is removed.
        self.refund = penalty * prior.square().view(len(channels), -1).sum(dim=1).cpu().numpy()
        self.constant = penalty * float(prior.square().sum())
        self.numbers = channels.tolist()
        self.alive = np.ones(len(channels), dtype=bool)
        self.waiting: list[Tensor] = []
        self.B = self._solve(regression, columns, prior)
        self.diagonal, self.gram = self._diagonal_blocks(), self._gram()

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
        costs, factors = _block_costs(self.name, self.diagonal, self.gram)
        return costs - self.refund, factors

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
        places = sorted(int(i) for i in order[:CANDIDATES])
        own = self._inputs(places)
        B = self.B.index_select(0, own)
        among = _among(self.name, self._columns(own, own), B @ B.T, self.refund[places])
        # The removal of a channel makes others dearer, so what costs no more than the others did is the cheapest.
        for i, cost in islice(among, min(count, len(places))):
            if found and cost > bound:
                break
            found.append((places[i], cost))
        return found

    def _remove(self, places: Sequence[int], factor: Tensor | None = None) -> None:
        """Remove the channels at some places; ``factor`` is the Cholesky factor of their block of P."""
        c, own = len(self.numbers), self._inputs(places)
        columns = self._columns(own)
        if factor is None:
            factor, info = torch.linalg.cholesky_ex(columns.index_select(0, own))
            if int(info):
                raise _not_definite(self.name)
        # P − P_·i P_ii⁻¹ P_i· = P − W Wᵀ with W = P_·i L⁻ᵀ, P_ii = L Lᵀ; the same W takes B_i out of B.
        W = torch.linalg.solve_triangular(factor, columns.T, upper=False).T.contiguous()
        self.B -= W @ torch.linalg.solve_triangular(factor, self.B.index_select(0, own), upper=False)
        blocks = W.view(c, self.area, -1)
        self.diagonal -= blocks @ blocks.transpose(1, 2)
        # Entries of a removed channel are exactly zero from here on; its own block must stay factorisable.
        self.B[own] = 0
        self.gram = self._gram()
        self.diagonal[list(places)] = torch.eye(self.area, dtype=W.dtype, device=W.device)
        self.alive[list(places)] = False
        self._down_date(W, own, factor)

    def _inputs(self, places: Sequence[int]) -> Tensor:
        """Rows of P and B that belong to the channels at some places."""
        return columns_of(torch.tensor(places, dtype=torch.int64), (self.area, 1)).to(self.B.device)

    def _solve(self, regression: EliminationRegression, columns: Tensor, prior: Tensor) -> Tensor:
        """Compute P; returns B."""
        K = regression.problem.moments.K_among(columns)
        mean_diagonal = float(K.diagonal().mean()) or 1.0
        L, _ = factorise(K, regression.penalty / mean_diagonal, name=self.name)
        del K
        self.P = torch.cholesky_inverse(L)
        return torch.cholesky_solve(self.right, L)

    def _diagonal_blocks(self) -> Tensor:
        c = len(self.numbers)
        blocks = self.P.view(c, self.area, c, self.area).diagonal(dim1=0, dim2=2)
        return blocks.permute(2, 0, 1).contiguous()

    def _gram(self) -> Tensor:
        """B_i B_iᵀ of each channel: (c, area, area); with its block of P it is all that its cost depends on."""
        blocks = self.B.view(len(self.numbers), self.area, -1)
        return blocks @ blocks.transpose(1, 2)

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
        self.B, self.diagonal, self.gram = self.B.index_select(0, columns), self.diagonal[stay], self.gram[stay]
        self.numbers, self.refund = [self.numbers[i] for i in stay.tolist()], self.refund[stay]
        self.alive = np.ones(len(stay), dtype=bool)
        self._take(columns)

    def _take(self, columns: Tensor) -> None:
        self.P = self.P.index_select(0, columns).index_select(1, columns)
        # Taken from P again, so that the blocks and P do not drift apart.
        self.diagonal = self._diagonal_blocks()


def _block_costs(name: str, diagonal: Tensor, gram: Tensor) -> tuple[np.ndarray, Tensor]:
    """tr P_ii⁻¹ B_i B_iᵀ of each channel, from these blocks (c, area, area); and the Cholesky factors of P_ii."""
    factors, info = torch.linalg.cholesky_ex(diagonal)
    if int(info.abs().max()):
        raise _not_definite(name)
    half = torch.linalg.solve_triangular(factors, gram, upper=False)
    costs = torch.linalg.solve_triangular(factors, half.mT, upper=False).diagonal(dim1=1, dim2=2).sum(dim=1)
    return costs.cpu().numpy(), factors


def _among(name: str, P: Tensor, gram: Tensor, refund: np.ndarray) -> Iterator[tuple[int, float]]:
    """Remove some channels one by one, the cheapest each time; yields the place and cost of each.

    Exact as long as no other channel is removed, from the rows and columns of P and of B Bᵀ that belong to them.
    """
    c, area = len(refund), len(P) // len(refund)
    alive = np.ones(c, dtype=bool)

    def blocks(of: Tensor) -> Tensor:
        return of.view(c, area, c, area).diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    for _ in range(c):
        costs, factors = _block_costs(name, blocks(P), blocks(gram))
        costs = np.where(alive, costs - refund, np.inf)
        i = int(np.argmin(costs))
        yield i, float(costs[i])
        own, factor = slice(i * area, (i + 1) * area), factors[i]
        # With W of `BlockElimination._remove` B becomes B − W V, V = L⁻¹B_i; T = V Bᵀ, so that V Vᵀ = T_i L⁻ᵀ.
        W = torch.linalg.solve_triangular(factor, P[:, own].T, upper=False).T
        T = torch.linalg.solve_triangular(factor, gram[own], upper=False)
        inner = torch.linalg.solve_triangular(factor, T[:, own].T, upper=False)
        crossed = W @ (T - inner @ W.T / 2)
        P = P - W @ W.T
        gram = gram - crossed - crossed.T
        for matrix, own_block in ((P, torch.eye(area, dtype=P.dtype, device=P.device)), (gram, 0.0)):
            matrix[own], matrix[:, own] = 0, 0
            matrix[own, own] = own_block
        alive[i] = False


def _not_definite(name: str) -> NumericalError:
    return NumericalError(name, "blocks of the inverse of K must be positive definite", fix="raise the ridge")


class FewRowsElimination(BlockElimination):
    r"""The same for few rows: K = RᵀR with R of fewer rows than half of its columns, see `Moments.root`.

    .. math:: P = (R^T R + \lambda I)^{-1} = (I - R^T A R) / \lambda, \qquad A = (R R^T + \lambda I)^{-1}

    Only A, of the size of the rows, is down-dated: without the columns R_i it is
    :math:`A + A R_i (\lambda P_{ii})^{-1} R_i^T A`.
    """

    def _solve(self, regression: EliminationRegression, columns: Tensor, prior: Tensor) -> Tensor:
        root, by_rows = regression.problem.moments.root, regression.by_rows
        assert root is not None and by_rows is not None
        self.R, self.penalty = root.index_select(1, columns), regression.penalty
        shifted = self.R @ self.R.T
        shifted.diagonal().add_(self.penalty)
        L = torch.linalg.cholesky(shifted)
        self.A = torch.cholesky_inverse(L)
        # (K + λI)⁻¹(C + λW) = W + Rᵀ(RRᵀ + λI)⁻¹(D − RW), with C = RᵀD.
        return prior + self.R.T @ torch.cholesky_solve(by_rows - self.R @ prior, L)

    def _diagonal_blocks(self) -> Tensor:
        by_channel = self.R.view(len(self.R), -1, self.area).permute(1, 2, 0)
        products = by_channel @ (self.A @ self.R).view(len(self.R), -1, self.area).transpose(0, 1)
        return (torch.eye(self.area).to(products) - products) / self.penalty

    def _gram(self) -> Tensor:
        """B_i B_iᵀ of each channel: (c, area, area); with its block of P it is all that its cost depends on."""
        blocks = self.B.view(len(self.numbers), self.area, -1)
        return blocks @ blocks.transpose(1, 2)

    def _columns(self, own: Tensor, rows: Tensor | None = None) -> Tensor:
        R = self.R if rows is None else self.R.index_select(1, rows)
        self.product = self.A @ self.R.index_select(1, own)
        columns = R.T @ self.product
        ones = own[:, None] == (torch.arange(R.shape[1], device=own.device) if rows is None else rows)
        return (ones.T.to(columns) - columns) / self.penalty

    def _down_date(self, W: Tensor, own: Tensor, factor: Tensor) -> None:
        # A R_i was computed with the columns of P right before.
        change = torch.linalg.solve_triangular(factor, self.product.T, upper=False)
        self.A.addmm_(change.T, change, alpha=1 / self.penalty)
        self.R[:, own] = 0
        if (~self.alive).sum() >= DELAY:
            self._compact()

    def _take(self, columns: Tensor) -> None:
        self.R = self.R.index_select(1, columns)
