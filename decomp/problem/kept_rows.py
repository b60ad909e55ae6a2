"""Centred rows of a layer with many more inputs than rows: they take less memory than the moments, and less work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.exact_sum import ExactSum
from decomp.problem.moments import Device, Moments, MomentSum, few_rows


def sum_of_rows(p: int, n: int, n_rows: int, device: Device = "cpu") -> MomentSum | KeptRows:
    """Sum of the moments of so many rows of p inputs and n responses; of few rows it keeps the rows themselves."""
    return KeptRows(p, n, device) if few_rows(p, n_rows, torch.device(device)) else MomentSum(p, n, device)


class KeptRows:
    r"""Few rows, whose moments are given by themselves: :math:`K = R^T R` with the centred rows R (`Moments.root`).

    Rows added in one order give the same bits, whatever tiles they came in.

    Parameters
    ----------
    p, n : int
        Inputs and responses.
    device : torch.device or str

    Attributes
    ----------
    sums : list of decomp.exact_sum.ExactSum
        Empty: nothing is added up, and all that processes exchange is the rows.
    """

    def __init__(self, p: int, n: int, device: Device = "cpu") -> None:
        self.p, self.n, self.device = p, n, torch.device(device)
        self.sums: list[ExactSum] = []
        self._rows: list[Tensor] = []

    @property
    def tiles(self) -> Tensor:
        """All rows, inputs and responses beside each other: (rows, p + n)."""
        return torch.cat([torch.zeros(0, self.p + self.n, device=self.device), *self._rows])

    def add(self, X: Tensor, Y: Tensor) -> None:
        """Add rows X (m, p) or (m, c, kh, kw) and Y (m, n), float32 or float64."""
        X, Y = X.detach().flatten(1), Y.detach().flatten(1)
        if X.shape[0] != Y.shape[0] or X.shape[1] != self.p or Y.shape[1] != self.n:
            rule = f"rows must be (m, {self.p}) and (m, {self.n})"
            raise DecompError("moments", rule, got=f"{tuple(X.shape)}, {tuple(Y.shape)}")
        self._rows.append(torch.cat([X, Y], 1).to(self.device))

    def merge(self, other: KeptRows) -> None:
        """Add the rows of another one behind these."""
        self._rows += other._rows

    def total(self) -> Moments:
        """Moments of all rows that were added."""
        return self.finished([], self.tiles)

    def finished(self, sums: Sequence[Tensor], tiles: Tensor) -> Moments:
        """Moments of the rows of all processes, in their order."""
        if not len(tiles):
            return Moments.zeros(self.p, self.n, device=self.device)
        rows = tiles.to(torch.float64)
        first = rows[0]
        # From the first row on, so that inputs which do not vary come out as exactly zero.
        away = rows - first
        shift = away.mean(dim=0)
        R, D = ((away - shift)[:, part].contiguous() for part in (slice(self.p), slice(self.p, None)))
        mean, S = first + shift, D.T @ D
        return Moments(None, R.T @ D, (S + S.T) / 2, mean[: self.p], mean[self.p :], len(rows), R, D)
