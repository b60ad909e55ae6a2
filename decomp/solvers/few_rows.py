"""Ridge regression on few rows: solutions by one eigen-decomposition of the size of the rows, for every ridge."""

from __future__ import annotations

import torch
from torch import Tensor

# Eigenvalues below this share of the largest are rounding.
NULL = 1e-12


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
        values, vectors = torch.linalg.eigh(root @ root.T)
        present = values > NULL * float(values[-1:].sum())
        self.values, self.root = values[present], root
        self.vectors = vectors[:, present] / self.values.sqrt()
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
