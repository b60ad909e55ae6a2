"""Ridge regression on few rows: solutions by one eigen-decomposition of the size of the rows, for every ridge."""

from __future__ import annotations

import torch
from torch import Tensor

from decomp.problem.moments import Moments

#: Rows are held as R (r, p) and D (r, n), with K = RᵀR and C = RᵀD.
Rows = tuple[Tensor, Tensor]

# Inputs that are added at a time in `nested_gains`.
TOGETHER = 128


class FewRows:
    r"""Solutions with K + λI for K = RᵀR of few rows: by one eigen-decomposition of RRᵀ = QΓQᵀ, for every λ.

    Right-hand sides are RᵀE of as many rows: :math:`(K + \lambda I)^{-1} R^T E = R^T Q (\Gamma + \lambda)^{-1} Q^T E`.

    Parameters
    ----------
    moments : decomp.problem.moments.Moments
        With a root R, and responses D by its rows.
    prior : Tensor of shape (p, n), optional
        B₀: E = D − RB₀, so that the right-hand side is C − KB₀; without it that is C.
    """

    def __init__(self, moments: Moments, prior: Tensor | None = None) -> None:
        assert moments.root is not None, "made for few rows"
        self.root, (self.values, self.vectors) = moments.root, moments.spectrum()
        left = moments.by_rows if prior is None else moments.by_rows - self.root @ prior
        self.along = self.vectors.T @ left
        self.squares = self.along.square().sum(dim=1)
        #: tr B₀ᵀ(KB₀ − 2C), by which the squared error of the prior is larger than that without it.
        self.rise = float(left.square().sum() - moments.by_rows.square().sum())

    def solve(self, penalty: float) -> Tensor:
        """(K + λI)⁻¹(C − KB₀) for an absolute λ."""
        return self.root.T @ (self.vectors @ (self.along / (self.values + penalty)[:, None]))

    def explained(self, penalty: float) -> float:
        """tr (C − KB₀)ᵀ(K + λI)⁻¹(C − KB₀)."""
        return float((self.squares * self.values / (self.values + penalty)).sum())

    def determinant(self, penalty: float) -> float:
        """log det(K + λI) − p log λ."""
        return float((1 + self.values / penalty).log().sum())


def nested_gains(fitted: Rows, prior: Tensor, penalty: float, measured: Rows) -> Tensor:
    r"""Decrease of the squared error on some rows as inputs are added one by one to a fit of few rows.

    With :math:`M = R R^T + \lambda I` of the inputs so far, the fit is :math:`B = B_0 + R^T Z`,
    :math:`Z = M^{-1}(D - R B_0)`. Inputs r with their prior b, `TOGETHER` at a time, change :math:`M^{-1}` by
    :math:`-U U^T` and Z by :math:`-U T`, and their own coefficients become :math:`L^{-T} T`, with

    .. math:: L L^T = I + r^T M^{-1} r, \qquad U = M^{-1} r L^{-T}, \qquad T = L^{-1} (r^T Z + b).

    The first columns of U and rows of T are those of the first of these inputs alone, so the predictions on rows R'
    grow column by column by :math:`(R'_r L^{-T} - R' R^T U)\,T`. No matrix is larger than the rows.

    Parameters
    ----------
    fitted : pair of Tensor of shape (r, p) and (r, n)
    prior : Tensor of shape (p, n)
        B₀, see `linalg.least_squares`.
    penalty : float
        λ, absolute and above 0.
    measured : pair of Tensor of shape (r', p) and (r', n)
        Rows on which the error is measured.

    Returns
    -------
    Tensor of shape (p,)
    """
    (root, wanted), (far_root, far_wanted) = fitted, measured
    inverse = torch.eye(len(root), dtype=root.dtype, device=root.device) / penalty
    Z, cross = wanted / penalty, far_root.new_zeros(len(far_root), len(root))
    left, gains = far_wanted.clone(), []
    for own, far, b in zip(root.split(TOGETHER, 1), far_root.split(TOGETHER, 1), prior.split(TOGETHER)):
        own = own.contiguous()
        product = inverse @ own
        inner = own.T @ product
        inner.diagonal().add_(1.0)
        L = torch.linalg.cholesky(inner)
        U = torch.linalg.solve_triangular(L, product.T, upper=False).T
        T = torch.linalg.solve_triangular(L, own.T @ Z + b, upper=False)
        grown = torch.linalg.solve_triangular(L, far.T, upper=False).T - cross @ U
        # ‖left − Σ g_i t_iᵀ‖² falls with each i by 2 g_iᵀ left t_i, less twice a row of products up to the diagonal,
        # which counts once.
        products = (grown.T @ grown) * (T @ T.T)
        gains.append(2 * (T * (grown.T @ left)).sum(1) - 2 * products.tril().sum(1) + products.diagonal())
        left.addmm_(grown, T, alpha=-1)
        Z.addmm_(U, T, alpha=-1)
        inverse.addmm_(U, U.T, alpha=-1)
        cross.addmm_(far, own.T)
    return torch.cat(gains)
