"""Channel selection by the lasso path on the exact c×c Gram matrix (1707.06168)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.factors import Selection
from decomp.problem.layer_problem import LayerProblem

# A channel whose contribution has less than this share of the strongest one's variance is dead: it cannot enter.
DEAD = 1e-12
# Channels whose K∘(WWᵀ) block row is formed at once.
TILE_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class LassoPath:
    """The knots of the lasso path, from the strongest penalty down.

    Parameters
    ----------
    alphas : ndarray of shape (n_knots,)
        λ of the objective in `gram_path`, descending.
    betas : ndarray of shape (n_knots, c)
    ended : bool
        Whether the path reached its end (λ = 0 or no channel left to enter).
    """

    alphas: np.ndarray
    betas: np.ndarray
    ended: bool


def channel_gram(problem: LayerProblem) -> tuple[Tensor, Tensor]:
    r"""Gram matrix and right-hand side of the regression of the responses on the contribution of each channel.

    With Z_i = X_i W_iᵀ the contribution of channel i (N, n), centred, and F the output metric,

    .. math:: G_{ij} = tr\,F Z_i^T Z_j = \sum_{block\,ij} K \circ (W^T F W), \qquad
              g_i = tr\,F Z_i^T Y = \sum_{block\,i} (C F) \circ W^T

    Returns
    -------
    G : Tensor of shape (c, c), float64
    g : Tensor of shape (c,), float64
    """
    B, moments, F = problem.matrix(), problem.moments, problem.float64_metric()
    c, area = problem.n_channels, problem.kernel[0] * problem.kernel[1]
    weighted = B if F is None else B @ F
    G = torch.empty(c, c, dtype=torch.float64, device=B.device)
    for start in range(0, c, TILE_CHANNELS):
        stop = min(start + TILE_CHANNELS, c)
        rows = slice(start * area, stop * area)
        product = (weighted[rows] @ B.T) * moments.rows_of_K(rows)
        G[start:stop] = product.view(stop - start, area, c, area).sum(dim=(1, 3))
    g = (weighted * moments.C).reshape(c, -1).sum(dim=1)
    return (G + G.T) / 2, g


def gram_path(G: np.ndarray, g: np.ndarray, n_rows: int, *, stop_at: int | None = None) -> LassoPath:
    r"""Lasso path by least-angle regression (Efron et al. 2004, `sklearn.linear_model.lars_path_gram`).

    .. math:: \min_\beta \frac{1}{2N} (\beta^T G \beta - 2 g^T \beta) + \lambda \|\beta\|_1

    Parameters
    ----------
    G : ndarray of shape (c, c)
        Positive semi-definite. Channels with less than `DEAD` of the largest diagonal entry never enter.
    g : ndarray of shape (c,)
    n_rows : int
        N, which only scales λ.
    stop_at : int, optional
        The path may end once this many coefficients are not zero.
    """
    c = len(g)
    diagonal = np.diag(G)
    live = np.flatnonzero(diagonal > DEAD * max(diagonal.max(), 0.0))
    if len(live) == 0:
        return LassoPath(np.zeros(1), np.zeros((1, c)), True)
    # The path solver's tolerances are absolute: bring the problem to unit scale. Coefficients do not change.
    scale = diagonal[live].mean()
    limit = min(stop_at or c, len(live))
    steps = limit + len(live) // 8 + 8
    while True:
        with warnings.catch_warnings():
            # It warns of channels dropped as copies of others; `select` completes those by its own rule.
            warnings.simplefilter("ignore", ConvergenceWarning)
            alphas, _, coefs, n_iter = lars_path_gram(
                g[live] / scale,
                G[np.ix_(live, live)] / scale,
                n_samples=1,
                method="lasso",
                max_iter=steps,
                return_n_iter=True,
            )
        reached = (coefs != 0).sum(axis=0).max() >= limit
        if reached or n_iter < steps:
            break
        steps *= 2
    betas = np.zeros((coefs.shape[1], c))
    betas[:, live] = coefs.T
    return LassoPath(alphas * scale / n_rows, betas, n_iter < steps)


def select(problem: LayerProblem, keep: int) -> Selection:
    r"""Exactly ``keep`` input channels: the first point of the lasso path with that many (1707.06168, eq. 1).

    .. math:: \min_\beta \frac{1}{2N} \|Y_c - \sum_i \beta_i X_i W_i^T\|_F^2 + \lambda \|\beta\|_1

    over all rows, through `channel_gram`. Where the path never has that many (copies of channels, dead ones,
    an optimum that needs fewer) its largest set is completed with the channels of largest G_ii, the lowest
    number first among equals. Where several enter at once and it has too many, those of smallest |β_i|√G_ii are
    dropped, the highest number first.

    Parameters
    ----------
    problem : LayerProblem
    keep : int
        In 1..c.

    Returns
    -------
    Selection
        Report: ``alpha`` (λ there), ``completed`` and ``cut`` (channels added and removed by the rules above).

    Raises
    ------
    DecompError
        Count out of range.
    NumericalError
        NaN or Inf in the problem.
    """
    problem.checked()
    c = problem.n_channels
    if not 1 <= keep <= c:
        raise DecompError(problem.name, f"the number of channels kept must be in 1..{c} (c)", got=keep)
    G, g = (tensor.cpu().numpy() for tensor in channel_gram(problem))
    path = gram_path(G, g, problem.moments.n_rows, stop_at=keep)
    counts = (path.betas != 0).sum(axis=1)
    knot = int(np.argmax(counts >= keep)) if counts.max() >= keep else int(np.argmax(counts))
    beta = path.betas[knot]
    active = np.flatnonzero(beta)
    strength = np.diag(G)
    chosen, cut, completed = list(active), max(len(active) - keep, 0), max(keep - len(active), 0)
    if cut:
        weight = np.abs(beta[active]) * np.sqrt(strength[active])
        chosen = list(active[np.lexsort((active, -weight))][:keep])
    elif completed:
        others = np.setdiff1d(np.arange(c), active)
        chosen += list(others[np.lexsort((others, -strength[others]))][:completed])
    index = torch.tensor(sorted(int(i) for i in chosen), dtype=torch.int64)
    report = {"selector": "lasso", "alpha": float(path.alphas[knot]), "completed": completed, "cut": cut}
    return Selection(index, c, report)


def entry_order(problem: LayerProblem) -> list[int]:
    """All channels in the order in which they first enter the lasso path, then those that never enter, by G_ii."""
    G, g = (tensor.cpu().numpy() for tensor in channel_gram(problem))
    path = gram_path(G, g, problem.moments.n_rows)
    entered = path.betas != 0
    first = np.where(entered.any(axis=0), entered.argmax(axis=0), len(entered))
    # Two that enter at one knot: the stronger first.
    return [int(i) for i in np.lexsort((np.arange(len(g)), -np.diag(G), first))]
