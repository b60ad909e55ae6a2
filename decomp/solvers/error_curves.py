"""Error curves: relative error at every rank or width, from one factorisation or one eigen-decomposition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.layer_problem import LayerProblem, columns_of
from decomp.problem.moments import Moments
from decomp.solvers.few_rows import nested_gains
from decomp.solvers.linalg import (
    EVIDENCE,
    LeastSquares,
    Ridge,
    factorise,
    least_squares,
    metric_roots,
    ridge_value,
)
from decomp.solvers.reduced_rank import response_basis
from decomp.solvers.selection import retention_order
from decomp.solvers.spatial import (
    closed_form,
    coefficients,
    max_rank,
    require_splittable,
    rows_through_vertical,
    through_vertical,
)


def spatial_curve(
    problem: LayerProblem,
    held_out: Moments | None = None,
    *,
    ridge: Ridge = EVIDENCE,
    factors: tuple[Tensor, Tensor] | None = None,
) -> np.ndarray:
    """Error of `spatial.split` at every rank, H fitted.

    The columns of V at rank R are the first R of those at full rank, so the features of all ranks are nested and
    `nested_errors` gives the fitted error of each exactly.

    Parameters
    ----------
    problem : LayerProblem
        Kernel kh > 1 and kw > 1.
    held_out : Moments, optional
        Moments of other rows of the layer to measure the error on, about their own means; None measures on the
        fitted rows.
    ridge : float or 'evidence'
        See `linalg.least_squares`; 'evidence' chooses it once, for the full rank and no prior.
    factors : tuple of Tensor, optional
        V and H of `spatial.closed_form` at full rank, if they are known already.

    Returns
    -------
    ndarray of shape (max_rank + 1,)
        Relative error in the problem's metric at rank 0 (the means alone), 1, …, min(c·kh, n·kw). None larger
        than the one before: on held-out rows, the least up to that rank.
    """
    require_splittable(problem)
    problem.checked()
    V, H = factors or closed_form(problem, max_rank(problem))
    judged = problem.moments if held_out is None else held_out
    if not isinstance(ridge, str) and ridge > 0 and problem.moments.root is not None and judged.root is not None:
        # Without the matrices of all features, which are as large as those of the inputs.
        few, few_judged = (_few_through_vertical(one, V, problem.kernel) for one in (problem.moments, judged))
        penalty = ridge * (float(few.root.square().sum() / few.root.shape[1]) or 1.0)
        return _few_rows_errors(
            few, few_judged, judged.S, problem.kernel[1], coefficients(H), problem.metric, penalty
        )  # fmt: skip
    fitted = through_vertical(problem.moments, V, problem.kernel)
    other = None if held_out is None else through_vertical(held_out, V, problem.kernel)
    return nested_errors(fitted, problem.kernel[1], other, prior=coefficients(H), metric=problem.metric, ridge=ridge)


def channel_curve(
    problem: LayerProblem,
    held_out: Moments | None = None,
    *,
    ridge: Ridge = EVIDENCE,
    solution: LeastSquares | None = None,
) -> np.ndarray:
    """Error of the linear `channel.decompose` without a base at every rank.

    On the fitted rows: the least-squares error plus the eigenvalues left out. Parameters and result as in
    `spatial_curve`; ranks 0..n. ``solution`` is the least-squares fit with the layer's weights as the prior, if it is
    known already.
    """
    problem.checked()
    moments, metric = problem.moments, problem.float64_metric()
    B = (solution or least_squares(moments, ridge=ridge, prior=problem.matrix())).weight
    n, measured = B.shape[1], moments if held_out is None else held_out
    # Of few rows, what is added without energy on them is the prior, which counts on others.
    U, _ = response_basis(moments, B, metric, 0 if moments.root is None else n)
    directions = U if metric is None else metric_roots(metric)[0] @ U
    # In the coordinates Y F^½ U the errors of the directions add up: of a fitted one its residual, of another its size.
    if moments.root is not None and measured.root is not None:
        far, predicted = measured.by_rows @ directions, measured.root @ B @ directions
        gains = 2 * (predicted * far).sum(0) - predicted.square().sum(0)
    else:
        projected = B @ directions
        gains = 2 * (projected * (measured.C @ directions)).sum(0) - (projected * measured.times(projected)).sum(0)
    if U.shape[1] == n and moments.root is None:
        total = (directions * (measured.S @ directions)).sum()
    else:  # tr UᵀF^½SF^½U of all directions, without those
        total = measured.S.trace() if metric is None else (metric * measured.S).sum()
    return _relative(total, torch.cat([gains, gains.new_zeros(n - len(gains))]))


def selection_curve(
    problem: LayerProblem,
    held_out: Moments | None = None,
    *,
    selector: str = "backward",
    order: list[int] | None = None,
    seed: int = 0,
    ridge: Ridge = EVIDENCE,
) -> np.ndarray:
    """Error at every number of kept input channels, the weights on them fitted.

    One run of the selector orders the channels, and `nested_errors` measures all widths. For 'lasso' the order
    is that of first entry into its path.

    Parameters
    ----------
    problem, held_out, ridge
        As in `spatial_curve`.
    selector, seed
        As in `selection.retention_order`.
    order : list of int, optional
        All channels, the one to keep longest first; None computes it by ``selector``.

    Returns
    -------
    ndarray of shape (c + 1,)
        As in `spatial_curve`, at widths 0..c.
    """
    problem.checked()
    order = retention_order(problem, selector, seed=seed) if order is None else order
    if sorted(order) != list(range(problem.n_channels)):
        rule = f"the order must name each of its {problem.n_channels} channels once"
        raise DecompError(problem.name, rule, got=order[:8])
    columns = columns_of(torch.tensor(order), problem.kernel)
    fitted = problem.moments.take_inputs(columns)
    other = None if held_out is None else held_out.take_inputs(columns)
    prior, block = problem.matrix()[columns.to(fitted.C.device)], len(columns) // len(order)
    return nested_errors(fitted, block, other, prior=prior, metric=problem.metric, ridge=ridge)


def nested_errors(
    moments: Moments,
    block: int,
    held_out: Moments | None = None,
    *,
    prior: Tensor | None = None,
    metric: Tensor | None = None,
    ridge: Ridge = EVIDENCE,
) -> np.ndarray:
    r"""Least-squares error with the first 0, 1, 2, … blocks of inputs, all from one Cholesky factor.

    With K + λI = LLᵀ, the inputs L⁻¹x span step by step what the first of x span, and the coefficients of each
    fit on the first j, L⁻¹(C + λB₀), do not change as inputs are added. The moments of the rows on which the
    error is measured, brought to the same coordinates, then give the error of every fit.

    Parameters
    ----------
    moments : Moments
        Inputs in the order in which they are added.
    block : int
        Inputs added at a time; divides p.
    held_out : Moments, optional
        Rows on which the error is measured; None takes the fitted rows.
    prior : Tensor of shape (p, n), optional
        B₀ of `linalg.least_squares`.
    metric : Tensor of shape (n, n), optional
    ridge : float or 'evidence'

    Returns
    -------
    ndarray of shape (p // block + 1,)
        Relative errors, none larger than the one before.
    """
    p = moments.p
    if p % block:
        raise DecompError("curve", f"blocks of {block} must divide the inputs", got=p)
    # Without the prior: with all inputs it may be exact, which says nothing about the fits on fewer inputs.
    wanted, measured = ridge_value(moments, ridge), moments if held_out is None else held_out
    if moments.root is not None and measured.root is not None and wanted > 0:
        penalty = wanted * (moments.mean_diagonal() or 1.0)
        fitted, judged = (_Few(one.root, one.by_rows) for one in (moments, measured) if one.root is not None)
        return _few_rows_errors(fitted, judged, measured.S, block, prior, metric, penalty)
    L, used = factorise(moments.K, wanted)
    right = moments.C
    if prior is not None:
        right = right + used * (moments.mean_diagonal() or 1.0) * prior.to(moments.C)
    root = None if metric is None else metric_roots(metric.to(moments.C))[0]
    if root is not None:
        right, measured = right @ root, measured.map_outputs(root)
    weights = torch.linalg.solve_triangular(L, right, upper=False)
    C = torch.linalg.solve_triangular(L, measured.C, upper=False)
    if measured.root is not None:
        rows = torch.linalg.solve_triangular(L, measured.root.T, upper=False)
        gains = 2 * (weights * C).sum(dim=1).view(-1, block).sum(dim=1) - _rise(rows, weights, block)
        return _relative(measured.S.trace(), gains)
    K = torch.linalg.solve_triangular(L, measured.K, upper=False)
    K = torch.linalg.solve_triangular(L, K.T, upper=False)
    # Σ_ij≤r w_i·w_j K_ij grows by twice its new row less the diagonal.
    K *= weights @ weights.T
    gains = 2 * (weights * C).sum(dim=1) - 2 * K.tril().sum(dim=1) + K.diagonal()
    return _relative(measured.S.trace(), gains.view(-1, block).sum(dim=1))


class _Few(NamedTuple):
    """Moments of few rows: R (r, p) with K = RᵀR, and D (r, n) with C = RᵀD."""

    root: Tensor
    by_rows: Tensor


def _few_through_vertical(moments: Moments, V: Tensor, kernel: tuple[int, int]) -> _Few:
    assert moments.root is not None
    return _Few(rows_through_vertical(moments.root, V, kernel), moments.by_rows)


def _few_rows_errors(
    fitted: _Few, measured: _Few, S: Tensor, block: int, prior: Tensor | None, metric: Tensor | None, penalty: float
) -> np.ndarray:
    """The same from few rows, fitted and measured, whose matrices of all inputs are never formed."""
    wanted, far = fitted.by_rows, measured.by_rows
    prior = wanted.new_zeros(fitted.root.shape[1], wanted.shape[1]) if prior is None else prior.to(wanted)
    if metric is not None:
        root = metric_roots(metric.to(wanted))[0]
        prior, wanted, far, S = prior @ root, wanted @ root, far @ root, root @ S @ root
    gains = nested_gains((fitted.root, wanted), prior, penalty, (measured.root, far))
    return _relative(S.trace(), gains.view(-1, block).sum(1))


def _rise(rows: Tensor, weights: Tensor, block: int) -> Tensor:
    """Rise of the squared size of the predictions of few rows (p, r) with each block of inputs."""
    predicted, sizes = rows.new_zeros(rows.shape[1], weights.shape[1]), [rows.new_zeros(())]
    for inputs, own in zip(rows.split(block), weights.split(block)):
        predicted.addmm_(inputs.T, own)
        sizes.append(predicted.square().sum())
    return torch.stack(sizes).diff()


def _relative(total: Tensor, gains: Tensor) -> np.ndarray:
    """(total − Σ gains) / total after each step, not negative and not rising."""
    whole, removed = float(total), np.cumsum(gains.cpu().numpy())
    if not whole > 0:
        return np.zeros(len(removed) + 1)
    squared = np.concatenate([[whole], whole - removed])
    return np.minimum.accumulate(np.maximum(squared, 0.0) / whole)
