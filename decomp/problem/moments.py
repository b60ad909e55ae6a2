"""Second moments of inputs and responses, the sufficient statistics of a linear fit, from one pass over the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decomp.errors import DecompError, NumericalError
from decomp.problem.finite import count_not_finite

if TYPE_CHECKING:
    from decomp.problem.channel_moments import ChannelMoments

# Rows multiplied at once: bounds the working copy, and keeps sums in float32 short; sums of tiles are float64.
TILE_ROWS = 2048
# Columns multiplied at once. Only blocks on and above the diagonal of K are computed: with blocks of this size little
# more than half of all products.
TILE_COLUMNS = 192
# A negative squared error larger than this share of the terms that cancel is not due to rounding of float32 products.
ROUNDING = 1e-5
# Products of float32 rows leave entries of K exact to this share of its trace.
NOISE = 1e-6
# Remainder of K, relative to its diagonal, at which a factorisation of few rows ends.
REMAINDER = 1e-9
# Inputs for each row, and inputs at all, from which on K is treated as a product of few rows (`Moments.root`).
FEW, MANY_INPUTS = 2, 256


Device = str | torch.device


@dataclass(eq=False)
class Moments:
    r"""Centred second moments of rows X (N, p) and Y (N, n).

    .. math:: K = X_c^T X_c,\quad C = X_c^T Y_c,\quad S = Y_c^T Y_c

    where the subscript means that columns are centred on their means over all N rows. They are sums, not
    averages. The size does not depend on N, and moments of disjoint rows add up (``a + b``).

    Each tile of rows is centred on its own means, multiplied in the type of the rows (float32 or float64), and
    joined to the rest in float64 by the pairwise formula of Chan, Golub and LeVeque (1979): nothing large cancels.

    Parameters
    ----------
    K : Tensor of shape (p, p), float64
    C : Tensor of shape (p, n), float64
    S : Tensor of shape (n, n), float64
    x_mean : Tensor of shape (p,), float64
    y_mean : Tensor of shape (n,), float64
    n_rows : int
    """

    K: Tensor
    C: Tensor
    S: Tensor
    x_mean: Tensor
    y_mean: Tensor
    n_rows: int = 0
    _root: Tensor | None = field(default=None, repr=False)

    @classmethod
    def zeros(cls, p: int, n: int, device: Device = "cpu") -> Moments:
        """Moments of no rows, for ``p`` inputs and ``n`` responses."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zeros(p, p), zeros(p, n), zeros(n, n), zeros(p), zeros(n))

    @classmethod
    def of_rows(cls, X: Tensor, Y: Tensor) -> Moments:
        """Moments of rows in memory: X (N, p) and Y (N, n)."""
        moments = cls.zeros(X.flatten(1).shape[1], Y.shape[1], device=X.device)
        moments.update(X, Y)
        return moments

    def update(self, X: Tensor, Y: Tensor) -> None:
        """Add rows, in place.

        Parameters
        ----------
        X : Tensor of shape (m, p) or (m, c, kh, kw), float32 or float64
        Y : Tensor of shape (m, n)
        """
        p, n = self.C.shape
        X, Y = X.detach().flatten(1), Y.detach().flatten(1)
        if X.shape[0] != Y.shape[0] or X.shape[1] != p or Y.shape[1] != n:
            raise DecompError(
                "moments", f"rows must be (m, {p}) and (m, {n})", got=f"{tuple(X.shape)}, {tuple(Y.shape)}"
            )
        for start in range(0, len(X), TILE_ROWS):
            self._update_tile(X[start : start + TILE_ROWS], Y[start : start + TILE_ROWS])

    @property
    def root(self) -> Tensor | None:
        r"""Matrix R (r, p) with :math:`K = R^T R` for many more inputs than rows; None for other moments.

        Then r is less than the number of rows, and products and solutions with R take a fraction of the work of those
        with K. It is the pivoted Cholesky factor of K, each input taken relative to its own size, up to the rounding
        of K's entries. Computed once, and passed on to the moments that are made from these.
        """
        p = self.K.shape[0]
        if self._root is None and p >= MANY_INPUTS and FEW * self.n_rows <= p and self.K.device.type == "cpu":
            self._root = _pivoted_cholesky(self.K, self.n_rows)
        return self._root

    def with_root(self, root: Tensor | None) -> Moments:
        """These moments with a known root, if there is one and the inputs are many."""
        many = root is not None and root.shape[1] >= max(MANY_INPUTS, FEW * self.n_rows)
        self._root = root if many else None
        return self

    def times(self, B: Tensor) -> Tensor:
        """``K @ B`` for B (p, m)."""
        return self.K @ B if self.root is None else self.root.T @ (self.root @ B)

    def with_responses(self, C: Tensor, S: Tensor, y_mean: Tensor) -> Moments:
        """Moments of the same X and other responses."""
        return Moments(self.K, C, S, self.x_mean, y_mean, self.n_rows, self.root)

    def _update_tile(self, X: Tensor, Y: Tensor) -> None:
        self._root = None
        dtype, device = _product_dtype(X, Y), self.K.device
        X, x_mean = _centred(X.to(device, dtype))
        Y, y_mean = _centred(Y.to(device, dtype))
        rows = X.shape[0]
        for start in range(0, X.shape[1], TILE_COLUMNS):
            stop = min(start + TILE_COLUMNS, X.shape[1])
            block = X[:, start:stop]
            product = (block.T @ block).to(torch.float64)
            # A matrix product need not be symmetric to the last bit; K is, so that A and Aᵀ mean one thing.
            self.K[start:stop, start:stop] += (product + product.T) / 2
            if stop < X.shape[1]:
                beside = block.T @ X[:, stop:]
                self.K[start:stop, stop:] += beside
                self.K[stop:, start:stop] += beside.T
            self.C[start:stop] += block.T @ Y
        product = (Y.T @ Y).to(torch.float64)
        self.S += (product + product.T) / 2
        self._join_means(x_mean, y_mean, rows)

    def _join_means(self, x_mean: Tensor, y_mean: Tensor, rows: int) -> None:
        """Add the term for the distance to the means of ``rows`` further rows, and update the means."""
        total = self.n_rows + rows
        if total == 0:
            return
        dx, dy = x_mean - self.x_mean, y_mean - self.y_mean
        if self.n_rows and rows:
            root = math.sqrt(self.n_rows * rows / total)
            dx_root, dy_root = dx * root, dy * root
            for start in range(0, len(dx), TILE_COLUMNS):
                # First multiplied, then added, with the root on both sides: K stays symmetric to the last bit.
                block = slice(start, start + TILE_COLUMNS)
                self.K[block] += torch.outer(dx_root[block], dx_root)
            self.C += torch.outer(dx_root, dy_root)
            self.S += torch.outer(dy_root, dy_root)
        self.x_mean += dx * (rows / total)
        self.y_mean += dy * (rows / total)
        self.n_rows = total

    def __add__(self, other: Moments) -> Moments:
        """Moments of both row sets together; neither is changed."""
        if self.C.shape != other.C.shape:
            raise DecompError(
                "moments", f"only moments of {tuple(self.C.shape)} can be added", got=tuple(other.C.shape)
            )
        device = self.K.device
        total = Moments(
            self.K + other.K.to(device),
            self.C + other.C.to(device),
            self.S + other.S.to(device),
            self.x_mean.clone(),
            self.y_mean.clone(),
            self.n_rows,
        )
        total._join_means(other.x_mean.to(device), other.y_mean.to(device), other.n_rows)
        return total

    def to(self, device: Device) -> Moments:
        """The same moments on another device."""
        K, C, S, x_mean, y_mean = (t.to(device) for t in (self.K, self.C, self.S, self.x_mean, self.y_mean))
        return Moments(K, C, S, x_mean, y_mean, self.n_rows, None if device != self.K.device else self._root)

    def take_inputs(self, index: Tensor) -> Moments:
        """Moments of ``X[:, index]`` and Y."""
        index = torch.as_tensor(index, dtype=torch.int64, device=self.K.device)
        K = self.K.index_select(0, index).index_select(1, index)
        root = None if self.root is None else self.root.index_select(1, index)
        C = self.C.index_select(0, index)
        return Moments(K, C, self.S, self.x_mean[index], self.y_mean, self.n_rows).with_root(root)

    def map_inputs(self, A: Tensor) -> Moments:
        """Moments of ``X @ A`` (A of shape (p, q)) and Y."""
        A = A.to(self.K)
        K = A.T @ (self.K @ A)
        root = None if self.root is None else self.root @ A
        K, C = (K + K.T) / 2, A.T @ self.C
        return Moments(K, C, self.S, self.x_mean @ A, self.y_mean, self.n_rows).with_root(root)

    def map_outputs(self, T: Tensor) -> Moments:
        """Moments of X and ``Y @ T`` (T of shape (n, m))."""
        T = T.to(self.K)
        S = T.T @ self.S @ T
        return Moments(self.K, self.C @ T, (S + S.T) / 2, self.x_mean, self.y_mean @ T, self.n_rows, self.root)

    def error(self, B: Tensor, metric: Tensor | None = None) -> float:
        r"""Relative squared error of ``Y ≈ X @ B + b`` with the best b.

        .. math:: \frac{tr F (S - 2 B^T C + B^T K B)}{tr F S}

        Parameters
        ----------
        B : Tensor of shape (p, n)
        metric : Tensor of shape (n, n), optional
            F, symmetric positive semi-definite; None is the identity.

        Returns
        -------
        float
            0 for a perfect fit, 1 for the fit by the means alone. The three terms cancel as the error goes to
            0; a result negative by rounding, down to ``-ROUNDING`` times their sum, counts as 0. Responses that do
            not vary give 0 if B gives a constant too, up to ``ROUNDING`` beside their size, else infinity.

        Raises
        ------
        NumericalError
            If the result is more negative than rounding explains: K, C and S are not of one set of rows.
        """
        B = B.to(self.K)
        S, weighted = self.S, B
        if metric is not None:
            F = metric.to(self.K)
            S, weighted = S * F, B @ F
        total = float(S.sum() if metric is not None else S.trace())
        cross = float((weighted * self.C).sum())
        fitted = float((weighted * self.times(B)).sum())
        # Error that rounding of K alone can add for a B with parts in directions that the rows do not have.
        noise = NOISE * float(self.K.diagonal().sum()) * float(weighted.norm() * B.norm())
        squared, slack = total - 2 * cross + fitted, ROUNDING * (total + 2 * abs(cross) + abs(fitted)) + noise
        if squared < -slack:
            got = f"a squared error of {squared:.1e} from terms of {total:.1e}, {-2 * cross:.1e} and {fitted:.1e}"
            raise NumericalError("moments", "K, C and S must come from one set of rows", got=got)
        if total > 0:
            return max(squared, 0.0) / total
        return 0.0 if squared <= slack + ROUNDING * self.n_rows * float(self.y_mean @ self.y_mean) else float("inf")

    def check(self, name: str) -> None:
        """Raise `NumericalError` for layer ``name`` if there are no rows, or an entry is NaN or Inf."""
        require_finite(self, name)


def require_finite(moments: Moments | ChannelMoments, name: str) -> None:
    """Refuse moments of layer ``name`` that have no rows, or an entry that is NaN or Inf.

    Raises
    ------
    NumericalError
    """
    if moments.n_rows == 0:
        raise NumericalError(name, "a layer problem needs rows", got="none", fix="freeze images and points first")
    for letter, tensor in (("K", moments.K), ("C", moments.C), ("S", moments.S)):
        bad = count_not_finite(tensor)
        if bad:
            raise NumericalError(
                name, f"inputs and responses must be finite over its {moments.n_rows} rows",
                got=f"{bad} of {tensor.numel()} entries of {letter} NaN or Inf", fix="check the weights and images",
            )  # fmt: skip


def _pivoted_cholesky(K: Tensor, n_rows: int) -> Tensor:
    """R (r, p), r < n_rows, with K = RᵀR but for rounding, by pivots of largest remainder."""
    scale = K.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    left = (scale > 0).to(K.dtype)  # of the diagonal, relative to itself
    R = torch.empty(max(n_rows - 1, 0), len(K), dtype=K.dtype, device=K.device)
    for k in range(len(R)):
        pivot = int(left.argmax())
        size = float(left[pivot])
        if not size > REMAINDER:
            R = R[:k]
            break
        row = K[pivot] * inverse * inverse[pivot]
        R[k] = (row - R[:k, pivot] @ R[:k]) / math.sqrt(size)
        left -= R[k].square()
    return R * scale


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their means, in their own type; and the means in float64."""
    mean = rows.to(torch.float64).mean(dim=0)
    # A column that does not vary must come out as exactly zero: rounding of its mean is no variance.
    mean = torch.where(rows.amax(dim=0) == rows.amin(dim=0), rows[0].to(torch.float64), mean)
    return rows - mean.to(rows.dtype), mean


def _product_dtype(X: Tensor, Y: Tensor) -> torch.dtype:
    """Float64 for float64 rows, and where torch is set to multiply float32 less exactly; else float32."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return torch.float64 if torch.float64 in (X.dtype, Y.dtype) or not exact else torch.float32
