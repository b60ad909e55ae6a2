"""Spatial split of a kh×kw convolution into a kh×1 and a 1×kw one, fitted to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.factors import ConvFactor, FactoredConv
from decomp.problem.layer_problem import LayerProblem
from decomp.problem.moments import Moments
from decomp.solvers.linalg import (
    EVIDENCE,
    Ridge,
    column_signs,
    factorise,
    least_squares,
    metric_roots,
    symmetric_eigen,
    truncated_svd,
)

# Conjugate gradients for V given H stop at this relative residual or after this many steps.
CG_TOLERANCE = 1e-8
CG_STEPS = 50


def max_rank(problem: LayerProblem) -> int:
    """The rank at which the split is exact: min(c·kh, n·kw)."""
    (n, c), (kh, kw) = problem.weight.shape[:2], problem.kernel
    return min(c * kh, n * kw)


def split(
    problem: LayerProblem,
    rank: int,
    *,
    data: bool = True,
    covariance_aware: bool = True,
    alternate: int = 0,
    ridge: Ridge = EVIDENCE,
    factors: tuple[Tensor, Tensor] | None = None,
) -> FactoredConv:
    r"""Split into ``rank`` filters kh×1 without bias, and n filters 1×kw with one (Jaderberg et al. 2014, scheme 2).

    With A of shape (c·kh, n·kw), A[(c, y), (f, x)] = W[f, c, y, x], the kernel of rank R is A ≈ V H. V comes in
    closed form from

    .. math:: \min_{rank R} \| M^{1/2} (A - V H) F_x^{1/2} \|_F

    where M is the covariance of a column of the patch, averaged over x (the identity if not
    ``covariance_aware``), and F_x the output metric for each x. H and the bias are then fitted to the rows
    exactly, by least squares on the outputs of V:

    .. math:: \min_{H, b} \sum_i \| y_i - H^T (V^T x_i) - b \|^2

    which needs only the moments VᵀKV and VᵀC. Its ridge pulls towards the closed-form H, so full rank gives W.

    Parameters
    ----------
    problem : LayerProblem
        Kernel kh > 1 and kw > 1.
    rank : int
        In 1..min(c·kh, n·kw).
    data : bool
        False: the plain SVD of A with the layer's own bias, no data used.
    covariance_aware : bool
        False: V from the plain SVD of A; H is fitted all the same.
    alternate : int
        Number of times that V is fitted to the rows given H (by conjugate gradients), and H again.
    ridge : float or 'evidence'
        Of the fit of H, see `linalg.least_squares`.
    factors : tuple of Tensor, optional
        V and H of `closed_form` at this rank or a larger one, if they are known already.

    Returns
    -------
    FactoredConv
        ``vertical`` (rank, c, kh, 1) with the vertical stride, padding and dilation; ``horizontal``
        (n, rank, 1, kw) with the horizontal ones. Columns of V have length 1 and a positive largest entry
        (data-free: the singular values are shared evenly). Report: ``error`` relative on the moments,
        ``error_before_refit``, ``ridge``.

    Raises
    ------
    DecompError
        Rank out of range, or a kernel with an extent of 1.
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    _check(problem, rank, alternate)
    problem.checked()
    if not data:
        V, H = _plain_factors(problem.matrix_by_columns(), rank)
        return _assemble(problem, V, H, problem.bias, {"data": False})
    V, H = factors or closed_form(problem, rank, covariance_aware=covariance_aware)
    V, H = V[:, :rank], H[:rank]
    seen = through_vertical(problem.moments, V, problem.kernel)
    before = seen.error(coefficients(H), metric=problem.metric)
    H, bias, fitted = _refit_horizontal(problem, seen, H, ridge)
    report = {"data": True, "error_before_refit": before, "alternations": 0, **fitted}
    for _ in range(alternate):
        V_next, scales = _normalised(_refit_vertical(problem, V, H))
        seen = through_vertical(problem.moments, V_next, problem.kernel)
        # The same ridge again: for a prior that was fitted to the rows, the evidence would choose one that fixes it.
        prior = H * scales[:, None, None]
        H_next, bias_next, fitted = _refit_horizontal(problem, seen, prior, report["ridge"])
        if not fitted["error"] < report["error"]:
            break
        V, H, bias = V_next, H_next, bias_next
        report |= fitted | {"alternations": report["alternations"] + 1}
    return _assemble(problem, V, H, bias, report)


def require_splittable(problem: LayerProblem) -> None:
    """Raise `DecompError` where the kernel extends in one direction only."""
    kh, kw = problem.kernel
    if kh == 1 or kw == 1:
        fix = "leave the spatial split of this layer out"
        raise DecompError(
            problem.name, "a spatial split needs a kernel of more than one row and column", f"{kh}x{kw}", fix
        )


def _check(problem: LayerProblem, rank: int, alternate: int) -> None:
    require_splittable(problem)
    limit = max_rank(problem)
    if not 1 <= rank <= limit:
        words = "c·kh" if limit == problem.n_channels * problem.kernel[0] else "n·kw"
        raise DecompError(problem.name, f"rank must be in 1..{limit} ({words})", got=rank)
    if alternate < 0:
        raise DecompError(problem.name, "alternate must be 0 or more", got=alternate)


def closed_form(problem: LayerProblem, rank: int, *, covariance_aware: bool = True) -> tuple[Tensor, Tensor]:
    """V (c·kh, rank) and H (rank, n, kw) by a weighted SVD of the kernel, before any fit to rows (see `split`).

    The columns of V do not depend on the rank, except for their number: a smaller rank takes the leading ones.
    """
    A = problem.matrix_by_columns()
    if not covariance_aware:
        V, H = _plain_factors(A, rank)
        V, scales = _normalised(V)
        return V, H * scales[:, None, None]
    n, kw = A.shape[1:]
    M = column_covariance(problem.moments, problem.kernel)
    metric = problem.float64_metric()
    root, inverse = (None, None) if metric is None else metric_roots(metric)
    weighted = (A if root is None else torch.einsum("pnx,nm->pmx", A, root)).reshape(len(A), n * kw)
    if n * kw <= len(A):
        # Best rank R of M^½A is M^½ A W Wᵀ with W its leading right vectors: no inverse of M is needed.
        W, _ = symmetric_eigen(weighted.T @ (M @ weighted))
        W = W[:, :rank]
        V, scales = _normalised(weighted @ W)
        H = W.T.reshape(rank, n, kw)
        H = H if inverse is None else torch.einsum("rmx,mn->rnx", H, inverse)
        return V, H * scales[:, None, None]
    # M = LLᵀ; best rank R of LᵀA is U UᵀLᵀA.
    L, _ = factorise(M, name=problem.name)
    weighted = L.T @ weighted
    U, _ = symmetric_eigen(weighted @ weighted.T)
    U = U[:, :rank]
    V, scales = _normalised(torch.linalg.solve_triangular(L.T, U, upper=True))
    H = (U.T @ (L.T @ A.reshape(len(A), n * kw))).reshape(rank, n, kw)
    return V, H * scales[:, None, None]


def _plain_factors(A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    U, s, Vt = truncated_svd(A.reshape(len(A), -1), rank)
    return U * s.sqrt(), (s.sqrt()[:, None] * Vt).reshape(rank, *A.shape[1:])


def _normalised(V: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of length 1 with a positive largest entry, and the signed lengths they had.

    Columns that are rounding errors only become zero.
    """
    norms = V.norm(dim=0)
    real = norms > 1e-14 * norms.max()
    scales = torch.where(real, norms * column_signs(V), 0.0)
    return torch.where(real, V / torch.where(real, scales, 1.0), 0.0), scales


def column_covariance(moments: Moments, kernel: tuple[int, int]) -> Tensor:
    """Second moments of one column of the patch, (c·kh, c·kh), averaged over the columns x."""
    kw, size = kernel[1], moments.p // kernel[1]
    if moments.root is not None:
        columns = moments.root.view(-1, size, kw).transpose(1, 2).reshape(-1, size)
        total = columns.T @ columns
        return (total + total.T) / (2 * kw)
    blocks = _by_columns(moments, kernel)
    total = blocks[:, :, 0, :, :, 0].reshape(size, size)
    for x in range(1, kw):
        total = total + blocks[:, :, x, :, :, x].reshape(size, size)
    return total / kw


def _by_columns(moments: Moments, kernel: tuple[int, int]) -> Tensor:
    return moments.K.view(-1, *kernel, moments.p // (kernel[0] * kernel[1]), *kernel)


def through_vertical(moments: Moments, V: Tensor, kernel: tuple[int, int]) -> Moments:
    """Moments of the outputs of V for each column of the patches: features in the order (filter, x).

    Parameters
    ----------
    moments : Moments
        Of patches (c, kh, kw).
    V : Tensor of shape (c·kh, rank)
    kernel : (kh, kw)
    """
    kw, rank = kernel[1], V.shape[1]
    size = moments.p // kw
    V = V.to(moments.C)
    mean = (V.T @ moments.x_mean.view(size, kw)).reshape(-1)
    C = cross_through_vertical(moments.C, V, kernel)
    if moments.root is not None:
        root = rows_through_vertical(moments.root, V, kernel)
        own = Moments(None, C, moments.S, mean, moments.y_mean, moments.n_rows, root, moments.by_rows)
        return own.with_root(root)
    blocks = _by_columns(moments, kernel)
    K = torch.empty(rank, kw, rank, kw, dtype=V.dtype, device=V.device)
    for x in range(kw):
        for other in range(x, kw):
            product = V.T @ (blocks[:, :, x, :, :, other].reshape(size, size) @ V)
            if x == other:
                product = (product + product.T) / 2
            K[:, x, :, other] = product
            K[:, other, :, x] = product.T
    return Moments(K.view(rank * kw, -1), C, moments.S, mean, moments.y_mean, moments.n_rows)


def rows_through_vertical(root: Tensor, V: Tensor, kernel: tuple[int, int]) -> Tensor:
    """The root of `through_vertical`, (r, rank·kw), from that of the moments, (r, c·kh·kw)."""
    kw, rank = kernel[1], V.shape[1]
    by_columns = root.view(len(root), -1, kw)
    return torch.einsum("rpx,pq->rqx", by_columns, V.to(root)).reshape(len(root), rank * kw)


def cross_through_vertical(C: Tensor, V: Tensor, kernel: tuple[int, int]) -> Tensor:
    """C of `through_vertical`, (rank·kw, n), from that of the moments, (c·kh·kw, n)."""
    (size, rank), kw, n, V = V.shape, kernel[1], C.shape[1], V.to(C)
    by_columns = C.view(size, kw, n)
    return torch.stack([V.T @ by_columns[:, x] for x in range(kw)], 1).reshape(rank * kw, n)


def coefficients(H: Tensor) -> Tensor:
    """H (rank, n, kw) as coefficients of the features (rank·kw, n)."""
    return H.transpose(1, 2).reshape(-1, H.shape[1])


def _refit_horizontal(
    problem: LayerProblem, seen: Moments, H: Tensor, ridge: Ridge
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """H and the bias by least squares on the features; the relative error and the ridge used."""
    fit = least_squares(seen, ridge=ridge, prior=coefficients(H))
    H = fit.weight.view(-1, problem.kernel[1], problem.n_filters).transpose(1, 2)
    return H, fit.bias, {"error": seen.error(fit.weight, metric=problem.metric), **fit.report}


def _refit_vertical(problem: LayerProblem, V: Tensor, H: Tensor) -> Tensor:
    r"""V given H: minimise tr F(BᵀKB − 2BᵀC), B = V∘H, by preconditioned conjugate gradients from the present V.

    The normal operator V ↦ Σ_xx' K_xx' V H_x' F H_xᵀ has c·kh·rank unknowns: too many to factorise. The
    preconditioner treats the patch columns as uncorrelated, M⁻¹ V (Σ_x H_x F H_xᵀ)⁻¹.
    """
    moments, F = problem.moments, problem.float64_metric()
    kw, size, n = problem.kernel[1], len(V), H.shape[1]

    def compose(vertical: Tensor) -> Tensor:
        return torch.einsum("pr,rnx->pxn", vertical, H).reshape(size * kw, n)

    def adjoint(gradient: Tensor) -> Tensor:
        gradient = gradient if F is None else gradient @ F
        return torch.einsum("pxn,rnx->pr", gradient.view(size, kw, n), H)

    weighted = H if F is None else torch.einsum("rnx,nm->rmx", H, F)
    L_left, _ = factorise(column_covariance(moments, problem.kernel), name=problem.name)
    L_right, _ = factorise(torch.einsum("rnx,snx->rs", weighted, H), name=problem.name)

    def precondition(residual: Tensor) -> Tensor:
        return torch.cholesky_solve(torch.cholesky_solve(residual, L_left).T, L_right).T

    right = adjoint(moments.C)
    residual = right - adjoint(moments.times(compose(V)))
    direction = conditioned = precondition(residual)
    product = float((residual * conditioned).sum())
    goal = CG_TOLERANCE**2 * float((right * precondition(right)).sum())
    for _ in range(CG_STEPS):
        if product <= goal:
            break
        image = adjoint(moments.times(compose(direction)))
        step = product / float((direction * image).sum())
        V = V + step * direction
        residual = residual - step * image
        conditioned = precondition(residual)
        product, before = float((residual * conditioned).sum()), product
        direction = conditioned + (product / before) * direction
    return V


def _assemble(problem: LayerProblem, V: Tensor, H: Tensor, bias: Tensor | None, report: dict[str, Any]) -> FactoredConv:
    weight, kh, rank = problem.weight, problem.kernel[0], V.shape[1]
    vertical = V.T.reshape(rank, problem.n_channels, kh, 1).to(weight.device, weight.dtype).contiguous()
    horizontal = H.transpose(0, 1).unsqueeze(2).to(weight.device, weight.dtype).contiguous()
    bias = None if bias is None else bias.to(weight.device, weight.dtype)
    factors = (
        ConvFactor(vertical, None, problem.geometry.vertical()),
        ConvFactor(horizontal, bias, problem.geometry.horizontal()),
    )
    return FactoredConv(factors, ("vertical", "horizontal"), {"step": "spatial", "rank": rank, **report})
