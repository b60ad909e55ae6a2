"""Linear algebra on moments: least squares, reduced-rank regression, factorisations; float64, signs and order fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal

import torch
from torch import Tensor

from decomp.errors import DecompError, NumericalError
from decomp.problem.moments import Moments
from decomp.solvers.few_rows import FewRows

# Ridge relative to the mean diagonal. Products of float32 rows carry noise of about 1e-7 of the diagonal.
RIDGE = 1e-8
# Where the factorisation fails, the ridge grows by this factor, up to the bound; then the layer is refused.
RIDGE_GROWTH = 10.0
RIDGE_BOUND = 1e-2
# The ridge chosen by the evidence of the rows, see `choose_ridge`.
EVIDENCE: Final = "evidence"
Ridge = float | Literal["evidence"]
# Powers of ten, times the mean diagonal, among which a ridge is searched.
RIDGE_DECADES = (-8, 1)
# A prior that leaves less than this share of the responses' variance is exact up to rounding of float32 rows.
EXACT = 1e-6
# Eigenvalues of an output metric are raised to this share of their mean: the metric must be invertible.
METRIC_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """Coefficients and intercept of ``Y ≈ X @ weight + bias``.

    Parameters
    ----------
    weight : Tensor of shape (p, n), float64
    bias : Tensor of shape (n,), float64
    report : dict
        ``ridge``: the λ used, relative to the mean diagonal of K; ``ridge_raised``: whether it had to grow.
    """

    weight: Tensor
    bias: Tensor
    report: dict[str, Any] = field(default_factory=dict)


def factorise(K: Tensor, ridge: float = RIDGE, *, name: str = "least squares") -> tuple[Tensor, float]:
    """Cholesky factor of ``K + λ·mean(diag K)·I``, with the smallest λ = ridge·10ʲ that has one.

    Parameters
    ----------
    K : Tensor of shape (p, p)
        Symmetric positive semi-definite up to rounding.
    ridge : float
        The first λ to try.

    Returns
    -------
    L : Tensor of shape (p, p)
        Lower triangular.
    ridge : float
        The λ that was used.

    Raises
    ------
    NumericalError
        If no λ up to `RIDGE_BOUND` has a factorisation. There is no fallback.
    """
    # Inputs that do not vary at all leave K = 0; any positive number serves, as C is 0 too.
    mean_diagonal = float(K.diagonal().mean()) or 1.0
    if not math.isfinite(mean_diagonal) or mean_diagonal < 0:
        raise NumericalError(name, "the mean diagonal of K must be positive and finite", got=mean_diagonal)
    tried = ridge
    while tried <= max(RIDGE_BOUND, ridge):
        shifted = K.clone()
        shifted.diagonal().add_(tried * mean_diagonal)
        L, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            return L, tried
        del shifted, L
        tried = tried * RIDGE_GROWTH if tried > 0 else 1e-15
    raise NumericalError(
        name,
        f"K must be positive definite with a ridge of at most {RIDGE_BOUND:g} of its mean diagonal",
        got="a K that is not",
    )


def least_squares(moments: Moments, *, ridge: Ridge = RIDGE, prior: Tensor | None = None) -> LeastSquares:
    r"""Ridge regression of the responses on the inputs, with an unpenalised intercept.

    .. math:: \min_B \; tr(B^T K B - 2 B^T C) + \lambda\,\overline{diag K}\,\|B - B_0\|_F^2,
              \qquad b = \bar y - B^T \bar x

    so the mean error over the fitted rows is zero.

    Parameters
    ----------
    moments : Moments
    ridge : float or 'evidence'
        λ, or the λ that `choose_ridge` finds. If the Cholesky factorisation fails it grows tenfold until it does
        not; the report says so.
    prior : Tensor of shape (p, n), optional
        B₀, towards which the ridge pulls: in directions that the rows leave open the result keeps B₀. None is 0.

    Returns
    -------
    LeastSquares

    Raises
    ------
    NumericalError
        If K has no factorisation with a ridge of `RIDGE_BOUND`.

    Notes
    -----
    With a prior the result is B₀ + (K + λI)⁻¹(C − K B₀), so a prior that is exact already is returned exactly.
    """
    wanted = ridge_value(moments, ridge, prior)
    if moments.root is not None and wanted > 0:
        B = _few_rows(moments, prior).solve(wanted * (moments.mean_diagonal() or 1.0))
        B = B if prior is None else prior.to(B) + B
        return LeastSquares(B, intercept(moments, B), {"ridge": wanted, "ridge_raised": False})
    L, used = factorise(moments.K, wanted)
    if prior is None:
        B = torch.cholesky_solve(moments.C, L)
    else:
        prior = prior.to(moments.C)
        B = prior + torch.cholesky_solve(moments.C - moments.K @ prior, L)
    return LeastSquares(B, intercept(moments, B), {"ridge": used, "ridge_raised": used > wanted})


def ridge_value(moments: Moments, ridge: Ridge, prior: Tensor | None = None) -> float:
    """The ridge as a number: itself, or for 'evidence' the one that `choose_ridge` finds."""
    if not isinstance(ridge, str):
        return ridge
    if ridge != EVIDENCE:
        raise DecompError("ridge", f"must be a number or {EVIDENCE!r}", got=repr(ridge))
    return choose_ridge(moments, prior)


def choose_ridge(moments: Moments, prior: Tensor | None = None) -> float:
    r"""The ridge of largest evidence, which weighs the rows against the prior.

    `evidence_cost` is minimised over powers of ten, then by a parabola through the best three. Many rows per
    coefficient give a small ridge; as few rows as coefficients, where plain least squares fits noise without bound,
    a large one.

    Parameters
    ----------
    moments : Moments
    prior : Tensor of shape (p, n), optional
        B₀; None is 0.

    Returns
    -------
    float
        Relative to the mean diagonal of K. `RIDGE_BOUND` where the prior is exact (a share `EXACT` of the variance
        is left): the rows cannot say more then.
    """
    total = float(moments.S.trace())
    if not moments.mean_diagonal() > 0 or not total > 0:
        return RIDGE
    few = None if moments.root is None else _few_rows(moments, prior)
    right, left_over = _left_by_prior(moments, prior) if few is None else (moments.C, total + few.rise)
    if left_over <= EXACT * total:
        return RIDGE_BOUND
    costs: dict[int, float] = {}

    def cost(decade: int) -> float:
        if not RIDGE_DECADES[0] <= decade <= RIDGE_DECADES[1]:
            return math.inf
        if decade not in costs:
            costs[decade] = evidence_cost(moments, 10.0**decade, right, left_over, few)
        return costs[decade]

    return ridge_of_least_cost(cost, moments.n_rows / moments.p)


@lru_cache(maxsize=1)  # the ridge is asked for first, and the solution then
def _few_rows(moments: Moments, prior: Tensor | None) -> FewRows:
    return FewRows(moments, None if prior is None else prior.to(moments.C))


def ridge_of_least_cost(cost: Callable[[int], float], rows_each: float) -> float:
    """The ridge at the least of a cost of powers of ten, by a parabola through the best three.

    The cost of an exponent outside `RIDGE_DECADES` is infinity; rows for each input tell where the search starts.
    """
    best = min(max(round(-math.log10(rows_each)) - 2, RIDGE_DECADES[0]), RIDGE_DECADES[1])
    while min(cost(best - 1), cost(best + 1)) < cost(best):
        best = best - 1 if cost(best - 1) < cost(best + 1) else best + 1
    below, here, above = cost(best - 1), cost(best), cost(best + 1)
    curvature = below - 2 * here + above
    shift = (below - above) / (2 * curvature) if math.isfinite(curvature) and curvature > 0 else 0.0
    return 10.0 ** (best + shift) if math.isfinite(here) else RIDGE_BOUND


def _left_by_prior(moments: Moments, prior: Tensor | None) -> tuple[Tensor, float]:
    """C − KB₀, and the squared error of the prior, tr(S − 2B₀ᵀC + B₀ᵀKB₀)."""
    total = float(moments.S.trace())
    if prior is None:
        return moments.C, total
    prior = prior.to(moments.C)
    right = moments.C - moments.times(prior)
    return right, total - float((prior * (moments.C + right)).sum())


def evidence_cost(moments: Moments, ridge: float, right: Tensor, left_over: float, few: FewRows | None = None) -> float:
    r"""Twice the negative logarithm of the probability of the responses under a ridge, up to a constant.

    With B ~ N(B₀, σ²/λ) and Y − XB ~ N(0, σ²), σ² at its most likely value, N − 1 degrees of freedom about the
    mean and r(λ) the least penalised squared error (MacKay 1992, section 4):

    .. math:: n\,(\log\det(K + \lambda I) - p \log\lambda) + (N - 1)\,n\,\log r(\lambda)

    Parameters
    ----------
    moments : Moments
    ridge : float
        λ relative to the mean diagonal of K.
    right : Tensor of shape (p, n)
        C − KB₀.
    left_over : float
        Squared error of the prior.
    few : FewRows, optional
        Of moments of few rows and the prior, in place of a factorisation and of ``right``.

    Returns
    -------
    float
        Infinity where K + λI has no Cholesky factor.
    """
    p, n = moments.C.shape
    penalty = ridge * moments.mean_diagonal()
    if few is not None:
        explained, determinant = few.explained(penalty), few.determinant(penalty)
    else:
        shifted = moments.K.clone()
        shifted.diagonal().add_(penalty)
        L, info = torch.linalg.cholesky_ex(shifted)
        if int(info):
            return math.inf
        del shifted
        explained = float(torch.linalg.solve_triangular(L, right, upper=False).square().sum())
        determinant = 2 * float(L.diagonal().log().sum()) - p * math.log(penalty)
    error = max(left_over - explained, 1e-2 * EXACT * float(moments.S.trace()))
    return n * determinant + (moments.n_rows - 1) * n * math.log(error)


def intercept(moments: Moments, B: Tensor) -> Tensor:
    """The bias with which ``X @ B`` has no mean error on the rows: ȳ − Bᵀx̄."""
    return moments.y_mean - moments.x_mean @ B


@lru_cache(maxsize=1)  # the steps of a layer share its metric, which none of them changes
def metric_roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """F^½ and F^-½ of an output metric whose eigenvalues are raised to `METRIC_FLOOR` of their mean."""
    values, vectors = torch.linalg.eigh((metric + metric.T) / 2)
    mean = float(values.clamp_min(0).mean())
    if not mean > 0:
        raise NumericalError(
            "output metric", "F must be positive semi-definite and not zero", got=f"mean eigenvalue {mean}"
        )
    roots = values.clamp_min(METRIC_FLOOR * mean).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (columns, signs fixed) and eigenvalues (descending, none negative) of a PSD matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    vectors = vectors.flip(1).contiguous()
    return vectors * column_signs(vectors), values.flip(0).clamp_min(0)


def column_signs(vectors: Tensor) -> Tensor:
    """±1 for each column, so that its entry of largest magnitude (the first of equals) becomes positive."""
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    signs = torch.sign(vectors.gather(0, largest))[0]
    return torch.where(signs == 0, torch.ones_like(signs), signs)


def truncated_svd(A: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading part of ``A = U diag(s) Vᵀ``, with the largest entry of each column of U positive.

    Parameters
    ----------
    A : Tensor of shape (p, q)
    rank : int
        In 1..min(p, q).

    Returns
    -------
    U : Tensor of shape (p, rank)
    s : Tensor of shape (rank,)
    Vt : Tensor of shape (rank, q)
    """
    if not 1 <= rank <= min(A.shape):
        raise DecompError("svd", f"rank must be in 1..{min(A.shape)}", got=rank)
    U, s, Vt = torch.linalg.svd(A, full_matrices=False)
    U, s, Vt = U[:, :rank], s[:rank], Vt[:rank]
    signs = column_signs(U)
    return U * signs, s, Vt * signs[:, None]
