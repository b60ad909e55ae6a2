"""Which input channels a convolution keeps, and its weights on those that stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from decomp import lasso
from decomp.errors import DecompError, NumericalError
from decomp.factors import Selection
from decomp.linalg import RIDGE, factorise, least_squares, metric_roots
from decomp.problem import LayerProblem, matrix_to_weight

SELECTORS = ("lasso", "backward", "l1", "max-response", "first-k", "random")
# Eliminations whose effect on K⁻¹ is collected before it is applied in one product.
DELAY = 32


def select(problem: LayerProblem, keep: int, selector: str = "lasso", *, seed: int = 0) -> Selection:
    """Choose exactly ``keep`` input channels.

    Parameters
    ----------
    problem : LayerProblem
        Its output metric counts in 'lasso', 'backward' and 'max-response'.
    keep : int
        In 1..c.
    selector : str
        'lasso'
            The lasso path, see `lasso.select`.
        'backward'
            Backward elimination of the least-squares fit, see `eliminate`.
        'l1'
            Largest sum of absolute weights on the channel.
        'max-response'
            Largest variance of what the channel contributes to the responses.
        'first-k'
            The first ones.
        'random'
            A draw from ``seed``.
    seed : int
        For 'random' only.

    Returns
    -------
    Selection
        Ties go to the lower channel.

    Raises
    ------
    DecompError
        Unknown selector, or count out of range.
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    problem.checked()
    c = problem.n_channels
    if not 1 <= keep <= c:
        raise DecompError(problem.name, f"the number of channels kept must be in 1..{c} (c)", got=keep)
    if selector == "lasso":
        return lasso.select(problem, keep)
    if selector == "backward":
        removed = eliminate(problem, stop_at=keep).order
        chosen = sorted(set(range(c)) - set(removed))
    else:
        chosen = sorted(retention_order(problem, selector, seed=seed)[:keep])
    return Selection(torch.tensor(chosen, dtype=torch.int64), c, {"selector": selector})


def retention_order(problem: LayerProblem, selector: str, *, seed: int = 0) -> list[int]:
    """All channels, the one to keep longest first.

    The first k are what `select` keeps, except for 'lasso': its path may let a channel go again, and the order
    here is that of first entry.
    """
    c = problem.n_channels
    if selector == "lasso":
        return lasso.entry_order(problem)
    if selector == "backward":
        removed = eliminate(problem, stop_at=1).order
        return (sorted(set(range(c)) - set(removed)) + removed[::-1])[:c]
    if selector == "l1":
        return _descending(problem.weight.detach().to(torch.float64).abs().sum(dim=(0, 2, 3)))
    if selector == "max-response":
        return _descending(lasso.channel_gram(problem)[0].diagonal())
    if selector == "first-k":
        return list(range(c))
    if selector == "random":
        return torch.randperm(c, generator=torch.Generator().manual_seed(seed)).tolist()
    raise DecompError("selector", f"must be among {', '.join(SELECTORS)}", got=selector)


def _descending(scores: Tensor) -> list[int]:
    return np.argsort(-scores.cpu().numpy(), kind="stable").tolist()


@dataclass(frozen=True, eq=False)
class Elimination:
    """The course of a backward elimination.

    Parameters
    ----------
    order : list of int
        Channels in the order in which they went.
    errors : list of float
        Relative error with all channels, then after each elimination, the other weights refitted.
    report : dict
    """

    order: list[int]
    errors: list[float]
    report: dict = field(default_factory=dict)


def eliminate(problem: LayerProblem, stop_at: int = 1, *, ridge: float = RIDGE) -> Elimination:
    r"""Remove channels one by one, each time the one whose loss costs least after all others are refitted.

    With P = (K + λI)⁻¹ and B = P C over the channels still there, removing channel i raises the squared error by

    .. math:: tr\,F B_i^T (P_{ii})^{-1} B_i

    exactly; then P and B are down-dated by the block i (the group form of optimal brain surgeon, Hassibi and
    Stork 1993). Down-dates of P are collected and applied `DELAY` at a time, and P is computed afresh each time
    half of the channels are gone.

    Parameters
    ----------
    problem : LayerProblem
    stop_at : int
        Channels that stay, 1..c.
    ridge : float
        λ relative to the mean diagonal of K, see `linalg.factorise`.

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
        raise DecompError(
            problem.name, f"the number of channels kept must be in 1..{problem.n_channels} (c)", got=stop_at
        )
    metric = problem.float64_metric()
    root = None if metric is None else metric_roots(metric)[0]
    C, S = problem.moments.C, problem.moments.S
    if root is not None:
        C, S = C @ root, root @ S @ root
    # An absolute ridge: the same regression on fewer channels, not a new one at each refresh.
    absolute = ridge * float(problem.moments.K.diagonal().mean())
    channels = torch.arange(problem.n_channels)
    order, costs, first = [], [], None
    while True:
        stage = _Elimination(problem, C, channels, absolute)
        if first is None:
            first = float(S.trace()) - stage.explained()
        goal = max(stop_at, len(channels) // 2)
        for channel, cost in stage.run(len(channels) - goal):
            order.append(channel)
            costs.append(cost)
        channels = stage.channels()
        if len(channels) <= stop_at:
            break
    total = float(S.trace())
    squared = np.maximum(first, 0.0) + np.concatenate([[0.0], np.cumsum(costs)])
    errors = (squared / total if total > 0 else np.zeros_like(squared)).tolist()
    return Elimination(order, errors, {"selector": "backward", "ridge": ridge})


class _Elimination:
    """K⁻¹ and the coefficients on a set of channels, and their down-dates."""

    def __init__(self, problem: LayerProblem, C: Tensor, channels: Tensor, absolute_ridge: float):
        self.name, self.area = problem.name, problem.kernel[0] * problem.kernel[1]
        columns = (channels[:, None] * self.area + torch.arange(self.area)).reshape(-1).to(C.device)
        K = problem.moments.K.index_select(0, columns).index_select(1, columns)
        mean_diagonal = float(K.diagonal().mean()) or 1.0
        L, _ = factorise(K, absolute_ridge / mean_diagonal, name=problem.name)
        del K
        self.C = C.index_select(0, columns)
        self.B = torch.cholesky_solve(self.C, L)
        self.P = torch.cholesky_inverse(L)
        self.numbers = channels.tolist()
        self.alive = np.ones(len(channels), dtype=bool)
        self.diagonal = self._diagonal_blocks()
        self.waiting = []

    def _diagonal_blocks(self) -> Tensor:
        c = len(self.numbers)
        blocks = self.P.view(c, self.area, c, self.area).diagonal(dim1=0, dim2=2)
        return blocks.permute(2, 0, 1).contiguous()

    def explained(self) -> float:
        """Squared error that the full fit removes: tr CᵀB."""
        return float((self.C * self.B).sum())

    def channels(self) -> Tensor:
        """Numbers of the channels still there."""
        return torch.tensor([n for n, alive in zip(self.numbers, self.alive) if alive])

    def run(self, count: int) -> Iterator[tuple[int, float]]:
        """Remove ``count`` channels; yields the number and cost of each."""
        for _ in range(count):
            costs, factors = self._costs()
            costs = np.where(self.alive, costs, np.inf)
            i = int(np.argmin(costs))
            self.alive[i] = False
            yield self.numbers[i], float(costs[i])
            self._remove(i, factors[i])

    def _costs(self) -> tuple[np.ndarray, Tensor]:
        c = len(self.numbers)
        factors, info = torch.linalg.cholesky_ex(self.diagonal)
        if int(info.abs().max()):
            raise NumericalError(
                self.name, "blocks of the inverse of K must be positive definite", fix="raise the ridge"
            )
        whitened = torch.linalg.solve_triangular(factors, self.B.view(c, self.area, -1), upper=False)
        return whitened.square().sum(dim=(1, 2)).cpu().numpy(), factors

    def _remove(self, i: int, factor: Tensor) -> None:
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
        # What is gone is exactly zero from here on, save for its own block, which must stay factorisable.
        self.B[own] = 0
        self.diagonal[i] = torch.eye(self.area, dtype=W.dtype, device=W.device)
        self.waiting.append(W)
        if len(self.waiting) == DELAY:
            done = torch.cat(self.waiting, dim=1)
            self.waiting = []
            self.P.addmm_(done, done.T, alpha=-1)
            self._compact()

    def _compact(self) -> None:
        """Leave out the channels that are gone."""
        stay = torch.from_numpy(np.flatnonzero(self.alive))
        columns = (stay[:, None] * self.area + torch.arange(self.area)).reshape(-1).to(self.P.device)
        self.P = self.P.index_select(0, columns).index_select(1, columns)
        self.B, self.C = self.B.index_select(0, columns), self.C.index_select(0, columns)
        self.numbers = [self.numbers[i] for i in stay.tolist()]
        self.alive = np.ones(len(stay), dtype=bool)
        # Afresh from P, so that the blocks and P do not drift apart.
        self.diagonal = self._diagonal_blocks()


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A layer's weights on the channels that stay; unpacks as ``weight, bias``.

    Parameters
    ----------
    weight : Tensor of shape (n, n_kept, kh, kw)
    bias : Tensor of shape (n,)
    report : dict
        ``error``: relative on the moments, in the problem's metric; ``error_before``: with the old weights on
        the kept channels; ``ridge``, ``ridge_raised``.
    """

    weight: Tensor
    bias: Tensor
    report: dict = field(default_factory=dict)

    def __iter__(self):
        return iter((self.weight, self.bias))


def reconstruct(problem: LayerProblem, selection: Selection, *, ridge: float = RIDGE) -> Reconstruction:
    """Least squares of the layer's weights and bias on the kept channels.

    The ridge pulls towards the old weights on these channels, so what the rows leave open (a dead channel)
    stays as it was, and keeping all channels of an unchanged network returns the layer itself. The output
    metric does not change the solution.

    Parameters
    ----------
    problem : LayerProblem
        On all channels.
    selection : Selection

    Returns
    -------
    Reconstruction

    Raises
    ------
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    problem.checked()
    if selection.n_total != problem.n_channels:
        raise DecompError(
            problem.name, f"the selection must be of {problem.n_channels} channels", got=selection.n_total
        )
    narrowed = problem.narrowed(selection)
    prior = narrowed.matrix()
    fit = least_squares(narrowed.moments, ridge=ridge, prior=prior)
    report = {
        "step": "prune",
        "keep": len(selection),
        "error_before": narrowed.moments.error(prior, metric=problem.metric),
        "error": narrowed.moments.error(fit.weight, metric=problem.metric),
        **fit.report,
    }
    weight = matrix_to_weight(fit.weight, problem.weight, problem.kernel)
    return Reconstruction(weight, fit.bias.to(weight), report)
