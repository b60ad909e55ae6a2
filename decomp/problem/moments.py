"""Second moments of inputs and responses, the sufficient statistics of a linear fit, from one pass over the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decomp.errors import DecompError, NumericalError
from decomp.exact_sum import ExactSum
from decomp.problem.finite import count_not_finite
from decomp.problem.row_factor import pivoted_cholesky, responses_by_rows, spectrum

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
# Inputs for each row, and inputs at all, from which on K is treated as a product of few rows (`Moments.root`).
FEW, MANY_INPUTS = 2, 256


Device = str | torch.device


class Moments:
    r"""Centred second moments of rows X (N, p) and Y (N, n).

    .. math:: K = X_c^T X_c,\quad C = X_c^T Y_c,\quad S = Y_c^T Y_c

    where the subscript means that columns are centred on their means over all N rows. They are sums, not
    averages. The size does not depend on N. :class:`MomentSum` adds them up. Of few rows K is kept as the rows
    themselves (:attr:`root`), and computed only where it is asked for.

    Parameters
    ----------
    K : Tensor of shape (p, p), float64, or None
        None where ``root`` stands for it.
    C : Tensor of shape (p, n), float64
    S : Tensor of shape (n, n), float64
    x_mean : Tensor of shape (p,), float64
    y_mean : Tensor of shape (n,), float64
    n_rows : int
    root : Tensor of shape (r, p), float64, optional
        R with :math:`K = R^T R`, where it is known.
    by_rows : Tensor of shape (r, n), float64, optional
        D with :math:`C = R^T D`, where it is known.
    """

    def __init__(
        self, K: Tensor | None, C: Tensor, S: Tensor, x_mean: Tensor, y_mean: Tensor, n_rows: int = 0,
        root: Tensor | None = None, by_rows: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.C, self.S, self.x_mean, self.y_mean, self.n_rows = C, S, x_mean, y_mean, n_rows
        self._K, self._root, self._by_rows = K, root, by_rows
        self._spectrum: tuple[Tensor, Tensor] | None = None

    @property
    def K(self) -> Tensor:
        """Moments of X: (p, p), float64."""
        if self._K is None:
            assert self._root is not None
            K = self._root.T @ self._root
            self._K = (K + K.T) / 2
        return self._K

    @property
    def p(self) -> int:
        """Number of inputs."""
        return len(self.C)

    def mean_diagonal(self) -> float:
        """Mean of the diagonal of K, to which ridges are relative."""
        if self._K is None and self._root is not None:
            return float(self._root.square().sum()) / self.p
        return float(self.K.diagonal().mean())

    @classmethod
    def zeros(cls, p: int, n: int, device: Device = "cpu") -> Moments:
        """Moments of no rows, for ``p`` inputs and ``n`` responses."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zeros(p, p), zeros(p, n), zeros(n, n), zeros(p), zeros(n))

    @classmethod
    def of_rows(cls, X: Tensor, Y: Tensor) -> Moments:
        """Moments of rows in memory: X (N, p) or (N, c, kh, kw), and Y (N, n)."""
        own = MomentSum(X.flatten(1).shape[1], Y.shape[1], device=X.device)
        own.add(X, Y)
        return own.total()

    @property
    def root(self) -> Tensor | None:
        r"""Matrix R (r, p) with :math:`K = R^T R` for many more inputs than rows; None for other moments.

        Then products and solutions with R take a fraction of the work of those with K. It is the centred rows
        themselves, where these were kept (:class:`decomp.problem.kept_rows.KeptRows`); otherwise the pivoted Cholesky
        factor of K, each input taken relative to its own size, up to the rounding of K's entries. Computed once, and
        passed on to the moments that are made from these.
        """
        if self._root is None and few_rows(self.p, self.n_rows, self.C.device):
            self._root = pivoted_cholesky(self.K, self.n_rows)
        return self._root

    @property
    def by_rows(self) -> Tensor:
        """D (r, n) with :math:`C = R^T D`, of moments with a root R; the centred responses of rows that were kept."""
        if self._by_rows is None:
            assert self.root is not None
            self._by_rows = responses_by_rows(self.root, self.C)
        return self._by_rows

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of :math:`R R^T`, see :func:`decomp.problem.row_factor.spectrum`."""
        if self._spectrum is None:
            assert self.root is not None
            self._spectrum = spectrum(self.root)
        return self._spectrum

    def with_root(self, root: Tensor | None) -> Moments:
        """These moments with a known root, if there is one and the inputs are many."""
        if root is None or root.shape[1] < max(MANY_INPUTS, FEW * self.n_rows):
            self._K, self._root, self._by_rows = self.K, None, None
        else:
            self._root = root
        return self

    def times(self, B: Tensor) -> Tensor:
        """``K @ B`` for B (p, m)."""
        return self.K @ B if self.root is None else self.root.T @ (self.root @ B)

    def rows_of_K(self, inputs: slice) -> Tensor:
        """Some rows of K: (m, p)."""
        if self._K is None and self._root is not None:
            return self._root[:, inputs].T @ self._root
        return self.K[inputs]

    def K_among(self, inputs: Tensor) -> Tensor:
        """Rows and columns of K of some inputs: (m, m), a new tensor."""
        if self._K is None and self._root is not None:
            root = self._root.index_select(1, inputs)
            return root.T @ root
        return self.K.index_select(0, inputs).index_select(1, inputs)

    def with_responses(self, C: Tensor, S: Tensor, y_mean: Tensor) -> Moments:
        """Moments of the same X and other responses."""
        return Moments(self._K, C, S, self.x_mean, y_mean, self.n_rows, self.root)

    def to(self, device: Device) -> Moments:
        """The same moments on another device."""
        K, C, S, x_mean, y_mean = (t.to(device) for t in (self.K, self.C, self.S, self.x_mean, self.y_mean))
        return Moments(K, C, S, x_mean, y_mean, self.n_rows, None if device != self.C.device else self._root)

    def take_inputs(self, index: Tensor) -> Moments:
        """Moments of ``X[:, index]`` and Y."""
        index = torch.as_tensor(index, dtype=torch.int64, device=self.C.device)
        K = None if self._K is None else self._K.index_select(0, index).index_select(1, index)
        root = None if self.root is None else self.root.index_select(1, index)
        C = self.C.index_select(0, index)
        own = Moments(K, C, self.S, self.x_mean[index], self.y_mean, self.n_rows, root, self._by_rows)
        return own.with_root(root)

    def map_outputs(self, T: Tensor) -> Moments:
        """Moments of X and ``Y @ T`` (T of shape (n, m))."""
        T = T.to(self.C)
        S = T.T @ self.S @ T
        y_mean, by_rows = self.y_mean @ T, None if self._by_rows is None else self._by_rows @ T
        return Moments(self._K, self.C @ T, (S + S.T) / 2, self.x_mean, y_mean, self.n_rows, self.root, by_rows)

    def error(self, B: Tensor, metric: Tensor | None = None, product: Tensor | None = None) -> float:
        r"""Relative squared error of ``Y ≈ X @ B + b`` with the best b.

        .. math:: \frac{tr F (S - 2 B^T C + B^T K B)}{tr F S}

        Parameters
        ----------
        B : Tensor of shape (p, n)
        metric : Tensor of shape (n, n), optional
            F, symmetric positive semi-definite; None is the identity.
        product : Tensor of shape (p, n), optional
            K @ B where it is known.

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
        B = B.to(self.C)
        F = None if metric is None else metric.to(self.C)
        total = float(self.S.trace() if F is None else (self.S * F).sum())
        if F is not None and self.root is not None and FEW * len(self.root) <= len(F):
            # Rows fewer than responses too: products with F of as many rows, not of as many as there are inputs.
            rows = self.root @ B
            weighted, size = rows @ F, float(B.norm().square() * F.norm())
            cross = float((weighted * self.by_rows).sum())
            fitted = float((weighted * rows).sum())
        else:
            weighted = B if F is None else B @ F
            size = float(weighted.norm() * B.norm())
            cross = float((weighted * self.C).sum())
            fitted = float((weighted * (self.times(B) if product is None else product)).sum())
        # Error that rounding of K alone can add for a B with parts in directions that the rows do not have.
        noise = NOISE * self.p * self.mean_diagonal() * size
        squared, slack = total - 2 * cross + fitted, ROUNDING * (total + 2 * abs(cross) + abs(fitted)) + noise
        if squared < -slack:
            got = f"a squared error of {squared:.1e} from terms of {total:.1e}, {-2 * cross:.1e} and {fitted:.1e}"
            raise NumericalError("moments", "K, C and S must come from one set of rows", got=got)
        if total > 0:
            return max(squared, 0.0) / total
        return 0.0 if squared <= slack + ROUNDING * self.n_rows * float(self.y_mean @ self.y_mean) else float("inf")

    def check(self, name: str) -> None:
        """Raise `NumericalError` for layer ``name`` if there are no rows, or an entry is NaN or Inf."""
        require_finite(self, name, self._root if self._K is None and self._root is not None else self.K)


class MomentSum:
    r"""Moments of rows that are added tile by tile, the same bits whoever adds which tiles, in whatever order.

    Each tile of rows is centred on its own means and multiplied in the type of the rows (float32 or float64): nothing
    large cancels. With the means m of all rows, and m_t and K_t of the N_t rows of tile t,

    .. math:: K = \sum_t K_t + \sum_t N_t (m_t - m)(m_t - m)^T

    (the analysis of variance, within tiles and between them). The first sum is exact
    (:class:`decomp.exact_sum.ExactSum`), and the second one a product of the means, which are kept.

    Parameters
    ----------
    p, n : int
        Inputs and responses.
    device : torch.device or str

    Attributes
    ----------
    sums : list of ExactSum
        Of K the blocks of TILE_COLUMNS rows from the diagonal on, then of C and S.
    """

    def __init__(self, p: int, n: int, device: Device = "cpu") -> None:
        self.p, self.n, self.device = p, n, torch.device(device)
        shapes = [(min(TILE_COLUMNS, p - start), p - start) for start in range(0, p, TILE_COLUMNS)]
        self.sums = [ExactSum(shape, device) for shape in (*shapes, (p, n), (n, n))]
        self._tiles: list[Tensor] = []

    @property
    def tiles(self) -> Tensor:
        """Of every tile its means of X and Y and its number of rows: (tiles, p + n + 1), float64."""
        empty = torch.zeros(0, self.p + self.n + 1, dtype=torch.float64, device=self.device)
        return torch.stack(self._tiles) if self._tiles else empty

    def add(self, X: Tensor, Y: Tensor) -> None:
        """Add rows.

        Parameters
        ----------
        X : Tensor of shape (m, p) or (m, c, kh, kw), float32 or float64
        Y : Tensor of shape (m, n)
        """
        X, Y = X.detach().flatten(1), Y.detach().flatten(1)
        if X.shape[0] != Y.shape[0] or X.shape[1] != self.p or Y.shape[1] != self.n:
            rule = f"rows must be (m, {self.p}) and (m, {self.n})"
            raise DecompError("moments", rule, got=f"{tuple(X.shape)}, {tuple(Y.shape)}")
        for start in range(0, len(X), TILE_ROWS):
            self._add_tile(X[start : start + TILE_ROWS], Y[start : start + TILE_ROWS])

    def _add_tile(self, X: Tensor, Y: Tensor) -> None:
        dtype = _product_dtype(X, Y)
        X, x_mean = _centred(X.to(self.device, dtype))
        Y, y_mean = _centred(Y.to(self.device, dtype))
        *of_K, of_C, of_S = self.sums
        for start, total in zip(range(0, self.p, TILE_COLUMNS), of_K):
            total.add(X[:, start : start + TILE_COLUMNS].T @ X[:, start:])
        of_C.add(X.T @ Y)
        of_S.add(Y.T @ Y)
        self._tiles.append(torch.cat([x_mean, y_mean, x_mean.new_full((1,), len(X))]))

    def merge(self, other: MomentSum) -> None:
        """Add the tiles of another sum, which stays as it is."""
        for own, of_other in zip(self.sums, other.sums):
            own.merge(of_other)
        self._tiles += other._tiles

    def total(self) -> Moments:
        """Moments of all rows that were added."""
        return self.finished([one.rounded() for one in self.sums], self.tiles)

    @staticmethod
    def finished(sums: Sequence[Tensor], tiles: Tensor) -> Moments:
        """Moments from the sums within all tiles, and the means of these, which may have come from several processes.

        Parameters
        ----------
        sums : sequence of torch.Tensor
            Those of :attr:`sums`, rounded; they are changed.
        tiles : torch.Tensor
            Of all processes, in the order of the rows.
        """
        *of_K, C, S = sums
        p, n = C.shape
        if not len(tiles):
            return Moments.zeros(p, n, device=C.device)
        mean, away, n_rows = between(tiles)
        dx, dy = away[:, :p], away[:, p:]
        K = torch.empty(p, p, dtype=C.dtype, device=C.device)
        for start, block in zip(range(0, p, TILE_COLUMNS), of_K):
            stop = start + len(block)
            block += dx[:, start:stop].T @ dx[:, start:]
            # A matrix product need not be symmetric to the last bit; K is, so that A and Aᵀ mean one thing.
            inside = block[:, : stop - start]
            block[:, : stop - start] = (inside + inside.T) / 2
            K[start:stop, start:] = block
            K[stop:, start:stop] = block[:, stop - start :].T
        C += dx.T @ dy
        S += dy.T @ dy
        return Moments(K, C, (S + S.T) / 2, mean[:p], mean[p:], n_rows)


def between(tiles: Tensor) -> tuple[Tensor, Tensor, int]:
    """Means over all rows; distances of the means of the tiles to them, times the root of their rows; all rows.

    Means are taken from those of the first tile on, so that inputs which do not vary come out as exactly zero.
    """
    means, rows = tiles[:, :-1], tiles[:, -1]
    away = means - means[0]
    n_rows = round(float(rows.sum()))
    shift = rows @ away / n_rows
    return means[0] + shift, (away - shift) * rows.sqrt()[:, None], n_rows


def require_finite(moments: Moments | ChannelMoments, name: str, K: Tensor) -> None:
    """Refuse moments of layer ``name`` that have no rows, or an entry that is NaN or Inf, also in K or its root.

    Raises
    ------
    NumericalError
    """
    if moments.n_rows == 0:
        raise NumericalError(name, "a layer problem needs rows", got="none", fix="freeze images and points first")
    for letter, tensor in (("K", K), ("C", moments.C), ("S", moments.S)):
        bad = count_not_finite(tensor)
        if bad:
            raise NumericalError(
                name, f"inputs and responses must be finite over its {moments.n_rows} rows",
                got=f"{bad} of {tensor.numel()} entries of {letter} NaN or Inf", fix="check the weights and images",
            )  # fmt: skip


def few_rows(p: int, n_rows: int, device: torch.device) -> bool:
    """Whether K of p inputs and so many rows is treated as a product of few rows (:attr:`Moments.root`)."""
    return p >= MANY_INPUTS and FEW * n_rows <= p and device.type == "cpu"


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
