"""Reduced-rank regression: the least-squares responses in their principal directions, by the smaller of two Grams."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.moments import MANY_INPUTS, Moments
from decomp.solvers.linalg import (
    RIDGE,
    LeastSquares,
    Ridge,
    column_signs,
    intercept,
    least_squares,
    metric_roots,
    symmetric_eigen,
)

# Where responses are at least MANY_INPUTS, and so many times as many as directions in which they can vary, these are
# computed from the inputs or the rows.
MANY_RESPONSES = 2


@dataclass(frozen=True, eq=False)
class ReducedRank:
    """``Y ≈ X @ encoder @ decoder + bias``.

    Parameters
    ----------
    encoder : Tensor of shape (p, rank), float64
    decoder : Tensor of shape (rank, n), float64
    bias : Tensor of shape (n,), float64
    projection : Tensor of shape (n, rank), float64
        The encoder on the least-squares responses: encoder = B₁ @ projection.
    energies : Tensor of shape (n,), float64
        Squared error that each further rank removes, descending.
    report : dict
    """

    encoder: Tensor
    decoder: Tensor
    bias: Tensor
    projection: Tensor
    energies: Tensor
    report: dict[str, Any] = field(default_factory=dict)


def reduced_rank(
    moments: Moments,
    rank: int,
    *,
    metric: Tensor | None = None,
    ridge: Ridge = RIDGE,
    prior: Tensor | None = None,
    solution: LeastSquares | None = None,
) -> ReducedRank:
    r"""Reduced-rank regression in an output metric.

    .. math:: \min_{rank B \le r} tr\,F (S - 2 B^T C + B^T K B)

    With B₁ the least-squares solution and U the leading r eigenvectors of F^½ B₁ᵀKB₁ F^½, the solution is
    (B₁F^½U)(UᵀF^-½) (Izenman 1975; Reinsel and Velu 1998, eq. 2.17).

    Parameters
    ----------
    moments : Moments
    rank : int
        In 1..n.
    metric : Tensor of shape (n, n), optional
        F. Its eigenvalues are raised to `METRIC_FLOOR` of their mean.
    ridge, prior
        As in `least_squares`.
    solution : LeastSquares, optional
        B₁ if it is known already.

    Returns
    -------
    ReducedRank

    Raises
    ------
    DecompError
        Rank out of range.
    NumericalError
        No factorisation, see `least_squares`.
    """
    n = moments.C.shape[1]
    if not 1 <= rank <= n:
        raise DecompError("reduced rank", f"rank must be in 1..{n} (n)", got=rank)
    full = solution or least_squares(moments, ridge=ridge, prior=prior)
    B = full.weight
    U, energies = response_basis(moments, B, metric, rank)
    U = U[:, :rank]
    if metric is None:
        projection, decoder = U, U.T
    else:
        root, inverse = metric_roots(metric.to(B))
        projection, decoder = root @ U, U.T @ inverse
    encoder = B @ projection
    bias = intercept(moments, encoder @ decoder)
    return ReducedRank(encoder, decoder, bias, projection, energies, dict(full.report))


def response_basis(moments: Moments, B: Tensor, metric: Tensor | None = None, least: int = 0) -> tuple[Tensor, Tensor]:
    r"""Principal directions of the fitted responses ``X @ B`` in the output metric.

    They are the eigenvectors of :math:`F^{1/2} B^T K B F^{1/2}`. Responses of few inputs or rows vary in as few
    directions: with :math:`K = H^T H` these are the right singular vectors of :math:`H B F^{1/2}`.

    Parameters
    ----------
    moments : Moments
    B : Tensor of shape (p, n)
    metric : Tensor of shape (n, n), optional
        F.
    least : int
        Fewest columns of U: directions without energy complete those that have some.

    Returns
    -------
    U : Tensor of shape (n, n) or (n, m)
        Orthonormal columns by descending eigenvalue, signs fixed; all directions, or at least those with energy.
    energies : Tensor of shape (n,)
        The eigenvalues, none negative.
    """
    root = None if metric is None else metric_roots(metric.to(B))[0]
    factor = _factor_of_few(moments, B.shape[1])
    if factor is None:
        fitted = B.T @ moments.times(B)
        return symmetric_eigen(fitted if root is None else root @ fitted @ root)
    rows = factor @ B
    _, sizes, right = torch.linalg.svd(rows if root is None else rows @ root, full_matrices=False)
    vectors = right.T.contiguous()
    if least > vectors.shape[1]:
        vectors = torch.cat([vectors, torch.linalg.qr(vectors, mode="complete")[0][:, vectors.shape[1] : least]], 1)
    energies = sizes.new_zeros(B.shape[1])
    energies[: len(sizes)] = sizes.square()
    return vectors * column_signs(vectors), energies


def _factor_of_few(moments: Moments, n: int) -> Tensor | None:
    """H (k, p) with K = HᵀH, k far below the number n of responses; None where there is none."""
    factor, p = moments.root, moments.p
    if n < MANY_INPUTS or n < MANY_RESPONSES * (p if factor is None else len(factor)):
        return None
    if factor is None:
        vectors, values = symmetric_eigen(moments.K)
        factor = (vectors * values.sqrt()).T
    return factor
