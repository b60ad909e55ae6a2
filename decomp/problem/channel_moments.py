"""Second moments of each channel of a depthwise convolution: many small least-squares problems of the same size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.moments import TILE_ROWS, Moments, require_finite

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

    def update(self, X: Tensor, Y: Tensor) -> None:
        """Add rows, in place.

        Parameters
        ----------
        X : Tensor of shape (rows, c, kh, kw) or (rows, c, p)
        Y : Tensor of shape (rows, c·m)
            The m responses of each channel lie side by side.
        """
        (c, p, m), X = self.C.shape, X.detach().flatten(2)
        if X.shape[1:] != (c, p) or Y.shape != (len(X), c * m):
            got = f"{tuple(X.shape)}, {tuple(Y.shape)}"
            raise DecompError("moments", f"rows must be (rows, {c}, {p}) and (rows, {c * m})", got=got)
        Y = Y.detach().unflatten(1, (c, m))
        for x, y in zip(X.split(TILE_ROWS), Y.split(TILE_ROWS)):
            for start in range(0, c, CHANNELS_AT_A_TIME):
                part = slice(start, start + CHANNELS_AT_A_TIME)
                self._update_tile(part, x[:, part], y[:, part])
            self.n_rows += len(x)

    def _update_tile(self, part: slice, x: Tensor, y: Tensor) -> None:
        """Add a tile to some of the channels; `n_rows` is that before the tile."""
        (x, x_mean), (y, y_mean) = _centred(x.to(self.K.device)), _centred(y.to(self.K.device))
        self.K[part] += x.mT @ x
        self.C[part] += x.mT @ y
        self.S[part] += y.mT @ y
        rows = x.shape[1]
        total = self.n_rows + rows
        dx, dy = x_mean - self.x_mean[part], y_mean - self.y_mean[part]
        share = self.n_rows * rows / total
        self.K[part] += share * dx[:, :, None] * dx[:, None]
        self.C[part] += share * dx[:, :, None] * dy[:, None]
        self.S[part] += share * dy[:, :, None] * dy[:, None]
        self.x_mean[part] += dx * (rows / total)
        self.y_mean[part] += dy * (rows / total)

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
        require_finite(self, name)


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, c, p) → channels first, less their means, and the means; both float64."""
    rows = rows.to(torch.float64).transpose(0, 1)
    # A column that does not vary must come out as exactly zero: rounding of its mean is no variance.
    mean = torch.where((rows == rows[:, :1]).all(dim=1), rows[:, 0], rows.mean(dim=1))
    return rows - mean[:, None], mean
