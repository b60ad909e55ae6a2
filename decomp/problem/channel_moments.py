"""Second moments of each channel of a depthwise convolution: many small least-squares problems of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.exact_sum import ExactSum
from decomp.problem.moments import TILE_ROWS, Moments, between, require_finite

# Channels multiplied at once: the float64 copies of their rows take TILE_ROWS · 8 bytes a column.
CHANNELS_AT_A_TIME = 128


@dataclass(eq=False)
class ChannelMoments:
    r"""Centred second moments of each channel's patches X_i (N, p) and responses Y_i (N, m).

    A depthwise convolution computes m outputs of each of its c input channels from that channel alone, so its fit
    falls apart into c problems of p = kh·kw inputs. For channel i the moments are those of
    :class:`decomp.problem.moments.Moments`, all in float64, and are joined by the same formula.

    Parameters
    ----------
    K : Tensor of shape (c, p, p)
    C : Tensor of shape (c, p, m)
    S : Tensor of shape (c, m, m)
    x_mean : Tensor of shape (c, p)
    y_mean : Tensor of shape (c, m)
    n_rows : int
        Rows N, the same for all channels.
    """

    K: Tensor
    C: Tensor
    S: Tensor
    x_mean: Tensor
    y_mean: Tensor
    n_rows: int = 0

    @classmethod
    def zeros(cls, channels: int, p: int, m: int, device: torch.device | str = "cpu") -> ChannelMoments:
        """Moments of no rows."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(channels, *shape, dtype=torch.float64, device=device)

        return cls(zeros(p, p), zeros(p, m), zeros(m, m), zeros(p), zeros(m))

    def __len__(self) -> int:
        """Number of channels."""
        return len(self.K)

    @classmethod
    def of_rows(cls, X: Tensor, Y: Tensor) -> ChannelMoments:
        """Moments of rows in memory: X (N, c, kh, kw) or (N, c, p), and Y (N, c·m)."""
        own = ChannelMomentSum(X.shape[1], X[0, 0].numel(), Y.shape[1] // X.shape[1], device=X.device)
        own.add(X, Y)
        return own.total()

    def of(self, channel: int) -> Moments:
        """The moments of one channel."""
        i = channel
        return Moments(self.K[i], self.C[i], self.S[i], self.x_mean[i], self.y_mean[i], self.n_rows)

    def uncentred(self) -> ChannelMoments:
        """The same about zero instead of the means: for a fit without a bias."""
        x, y, n = self.x_mean, self.y_mean, self.n_rows
        return ChannelMoments(
            self.K + n * x[:, :, None] * x[:, None], self.C + n * x[:, :, None] * y[:, None],
            self.S + n * y[:, :, None] * y[:, None], torch.zeros_like(x), torch.zeros_like(y), n,
        )  # fmt: skip

    def error(self, B: Tensor) -> float:
        """Squared error of ``Y_i ≈ X_i @ B[i] + b_i`` with the best b, over the variance, all channels together.

        Parameters
        ----------
        B : Tensor of shape (c, p, m)

        Returns
        -------
        float
            As :meth:`decomp.problem.moments.Moments.error` of a layer of which these are the parts.
        """
        B = B.to(self.K)
        total = float(self.S.diagonal(dim1=1, dim2=2).sum())
        left = total - 2 * float((B * self.C).sum()) + float((B * (self.K @ B)).sum())
        return max(left, 0.0) / total if total > 0 else 0.0 if left <= 0 else float("inf")

    def check(self, name: str) -> None:
        """Raise `NumericalError` for layer ``name`` if there are no rows, or an entry is NaN or Inf."""
        require_finite(self, name, self.K)


class ChannelMomentSum:
    """Moments of channels of rows that are added tile by tile, as in :class:`decomp.problem.moments.MomentSum`.

    Parameters
    ----------
    channels, p, m : int
        Each channel's inputs and responses.
    device : torch.device or str

    Attributes
    ----------
    sums : list of ExactSum
        Of K, C and S.
    """

    def __init__(self, channels: int, p: int, m: int, device: torch.device | str = "cpu") -> None:
        self.shape, self.device = (channels, p, m), torch.device(device)
        self.sums = [ExactSum((channels, *size), device) for size in ((p, p), (p, m), (m, m))]
        self._tiles: list[Tensor] = []

    @property
    def tiles(self) -> Tensor:
        """Of every tile the means of each channel's X and Y and the number of rows: (tiles, c, p + m + 1), float64."""
        c, p, m = self.shape
        empty = torch.zeros(0, c, p + m + 1, dtype=torch.float64, device=self.device)
        return torch.stack(self._tiles) if self._tiles else empty

    def add(self, X: Tensor, Y: Tensor) -> None:
        """Add rows.

        Parameters
        ----------
        X : Tensor of shape (rows, c, kh, kw) or (rows, c, p)
        Y : Tensor of shape (rows, c·m)
            The m responses of each channel lie side by side.
        """
        (c, p, m), X = self.shape, X.detach().flatten(2)
        if X.shape[1:] != (c, p) or Y.shape != (len(X), c * m):
            got = f"{tuple(X.shape)}, {tuple(Y.shape)}"
            raise DecompError("moments", f"rows must be (rows, {c}, {p}) and (rows, {c * m})", got=got)
        Y = Y.detach().unflatten(1, (c, m))
        for x, y in zip(X.split(TILE_ROWS), Y.split(TILE_ROWS)):
            pairs = zip(x.split(CHANNELS_AT_A_TIME, 1), y.split(CHANNELS_AT_A_TIME, 1))
            parts = [_products(one, other, self.device) for one, other in pairs]
            *products, means = (torch.cat(values) for values in zip(*parts))
            for total, product in zip(self.sums, products):
                total.add(product)
            self._tiles.append(torch.cat([means, means.new_full((c, 1), float(len(x)))], 1))

    def total(self) -> ChannelMoments:
        """Moments of all rows that were added."""
        return self.finished([one.rounded() for one in self.sums], self.tiles)

    @staticmethod
    def finished(sums: Sequence[Tensor], tiles: Tensor) -> ChannelMoments:
        """Moments from the sums within all tiles and their means, see :meth:`MomentSum.finished`."""
        K, C, S = sums
        c, p, m = C.shape
        if not len(tiles):
            return ChannelMoments.zeros(c, p, m, device=C.device)
        mean, away, n_rows = between(torch.cat([tiles[:, :, :-1].flatten(1), tiles[:, 0, -1:]], 1))
        mean, away = mean.unflatten(0, (c, -1)), away.unflatten(1, (c, -1)).transpose(0, 1)
        dx, dy = away[..., :p], away[..., p:]
        K, C, S = K + dx.mT @ dx, C + dx.mT @ dy, S + dy.mT @ dy
        return ChannelMoments(K, C, S, mean[:, :p], mean[:, p:], n_rows)


def _products(x: Tensor, y: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K, C, S of some channels of one tile, about its means; and the means (c, p + m)."""
    (x, x_mean), (y, y_mean) = _centred(x.to(device)), _centred(y.to(device))
    return x.mT @ x, x.mT @ y, y.mT @ y, torch.cat([x_mean, y_mean], 1)


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, c, p) → channels first, less their means, and the means; both float64."""
    rows = rows.to(torch.float64).transpose(0, 1)
    # A column that does not vary must come out as exactly zero: rounding of its mean is no variance.
    mean = torch.where((rows == rows[:, :1]).all(dim=1), rows[:, 0], rows.mean(dim=1))
    return rows - mean[:, None], mean
