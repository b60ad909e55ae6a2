"""Factor of the moments of few rows, K = RᵀR: computed from K, its spectrum, and responses by its rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Eigenvalues of few rows below this share of the largest are rounding.
NULL = 1e-12
# Remainder of K, relative to its diagonal, at which a factorisation of few rows ends.
REMAINDER = 1e-9
# Inputs whose remainders are computed at once in that factorisation; pivots have this share of the largest one.
PIVOTS, NEAR_LARGEST = 16, 0.1


def pivoted_cholesky(K: Tensor, n_rows: int) -> Tensor:
    """R (r, p), r < n_rows, with K = RᵀR but for rounding, by pivots of large remainder.

    The remainders of `PIVOTS` inputs are computed in one product, and those near the largest one become pivots: so R is
    not read as a whole for each row.
    """
    scale = K.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    left = (scale > 0).to(K.dtype)  # of the diagonal, relative to itself
    R, k = torch.empty(max(n_rows - 1, 0), len(K), dtype=K.dtype, device=K.device), 0
    while k < len(R):
        largest, candidates = left.topk(min(PIVOTS, len(K)))
        least = max(REMAINDER, NEAR_LARGEST * float(largest[0]))
        if not float(largest[0]) > REMAINDER:
            break
        rows = K[candidates] * inverse * inverse[candidates][:, None] - R[:k, candidates].T @ R[:k]
        while k < len(R):
            own = left[candidates]
            place = int(own.argmax())
            size = float(own[place])
            if not size > least:
                break
            R[k] = rows[place] / math.sqrt(size)
            rows -= torch.outer(R[k, candidates], R[k])
            left -= R[k].square()
            k += 1
    return R[:k] * scale


def spectrum(root: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues Γ of RRᵀ that are no rounding (m,), ascending, and their eigenvectors Q (r, m)."""
    values, vectors = torch.linalg.eigh(root @ root.T)
    present = values > NULL * float(values[-1:].sum())
    return values[present], vectors[:, present]


def responses_by_rows(root: Tensor, right: Tensor) -> Tensor:
    """D (r, n) with right = RᵀD, of a right-hand side (p, n) in the span of the rows of R (r, p), such as C."""
    values, vectors = spectrum(root)
    return (vectors / values) @ (vectors.T @ (root @ right))
