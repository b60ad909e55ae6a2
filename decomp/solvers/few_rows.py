"""Ridge regression on few rows: solutions by one eigen-decomposition of the size of the rows, for every ridge."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from decomp.problem.moments import NULL

#: Rows are held as R (r, p) and D (r, n), with K = RᵀR and C = RᵀD.
Rows = tuple[Tensor, Tensor]

# Inputs that are added at a time in `nested_gains`.
TOGETHER = 128


class FewRows:
    r"""Solutions with K + λI for K = RᵀR of few rows: by one eigen-decomposition of RRᵀ, for every λ.

    With RRᵀ = QΓQᵀ the columns of V = RᵀQΓ^-½ are the eigenvectors of K whose eigenvalues Γ are not zero. Right-hand
    sides lie in their span but for rounding, which is left out.

    Parameters
    ----------
    root : Tensor of shape (r, p)
        R, see `Moments.root`.
    right : Tensor of shape (p, n), optional
        C − KB₀ for `explained`.
    """

    def __init__(self, root: Tensor, right: Tensor | None = None) -> None:
        self.root = root
        self.values, self.vectors = _eigenvectors(root)
        # Squared size of the right-hand side along each eigenvector.
        self.squares = None if right is None else self._along(right).square().sum(dim=1)

    def _along(self, right: Tensor) -> Tensor:
        """Vᵀ @ right."""
        return self.vectors.T @ (self.root @ right)

    def solve(self, right: Tensor, penalty: float) -> Tensor:
        """(K + λI)⁻¹ @ right for an absolute λ."""
        return self.root.T @ (self.vectors @ (self._along(right) / (self.values + penalty)[:, None]))

    def explained(self, penalty: float) -> float:
        """tr rightᵀ(K + λI)⁻¹ right."""
        assert self.squares is not None, "made without a right-hand side"
        return float((self.squares / (self.values + penalty)).sum())

    def determinant(self, penalty: float) -> float:
        """log det(K + λI) − p log λ."""
        return float((1 + self.values / penalty).log().sum())


@lru_cache(maxsize=1)  # the same rows are asked for their ridge first and for solutions then
def _eigenvectors(root: Tensor) -> tuple[Tensor, Tensor]:
    """Γ and QΓ^-½ of the eigenvalues that are no rounding."""
    values, vectors = torch.linalg.eigh(root @ root.T)
    present = values > NULL * float(values[-1:].sum())
    return values[present], vectors[:, present] / values[present].sqrt()


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
