"""Order of the recorded images in a fit: the fitted ones with their mixtures first, the held-out ones behind them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from decomp.problem.kept_rows import KeptRows, sum_of_rows
from decomp.problem.moments import Device, MomentSum

from ...data.formats.frozen_file import FrozenFile
from ..run import calibration
from ..run.calibration import fitted_images, same_half


class FittedOrder:
    """The images of a frozen file, and what was recorded of them, in the order in which they are fitted.

    Where there are few images, the two halves of the fitted ones come one after the other, each followed by the
    mixtures of its own images, and then the mixtures of images of both; where there are enough, it is the order of the
    file.

    Parameters
    ----------
    frozen : decomp.data.formats.frozen_file.FrozenFile
    most : int, optional
        At most so many fitted images, where there are enough, and as large a share of the held-out ones.

    Attributes
    ----------
    halves : pair of int, or None
        Images and mixtures of the first half, and of the second one; None where there are enough images.
    n_fit, n : int
        Fitted images and mixtures; all recorded images.
    """

    def __init__(self, frozen: FrozenFile, most: int | None = None) -> None:
        self.frozen, self.n = frozen, frozen.n_recorded
        n_images, n_fit = frozen.n_images, fitted_images(frozen.n_images)
        mixtures, half = frozen.n_recorded - n_images, n_fit // 2
        if n_images >= calibration.RECORDED_IMAGES and not mixtures:
            self._ranges, self.n_fit = [(0, n_images)], n_fit
            self.halves: tuple[int, int] | None = None
            if most is not None and most < n_fit:
                n_held_out = -(-(n_images - n_fit) * most // n_fit)
                self._ranges, self.n_fit = [(0, most), (n_fit, n_fit + n_held_out)], most
                self.n = most + n_held_out
            return
        same = same_half(mixtures)
        # Mixtures whose first image, number i · n_fit // same, is in the first half.
        middle, end = n_images - (-half * same // n_fit), n_images + same
        self._ranges = [
            (0, half), (n_images, middle), (half, n_fit), (middle, end), (end, self.n), (n_fit, n_images),
        ]  # fmt: skip
        self.halves, self.n_fit = (half + middle - n_images, n_fit - half + end - middle), n_fit + mixtures

    def images(self, start: int, stop: int) -> Tensor:
        """Images by their places in this order: float32, shape (stop - start, C, H, W)."""
        return self._joined(self.frozen.images, start, stop)

    def responses(self, key: str, start: int, stop: int) -> Tensor:
        """Responses, see :meth:`decomp.data.formats.frozen_file.FrozenFile.responses`."""
        return self._joined(lambda a, b: self.frozen.responses(key, a, b), start, stop)

    def positions(self, grid: str) -> Tensor:
        """Sampled positions of all recorded images on a grid."""
        positions = self.frozen.positions(grid)
        return self._joined(lambda a, b: positions[a:b], 0, self.n)

    def _joined(self, read: Callable[[int, int], Tensor], start: int, stop: int) -> Tensor:
        parts, place = [], 0
        for begin, end in self._ranges:
            first, last = max(start, place), min(stop, place + end - begin)
            if first < last:
                parts.append(read(begin + first - place, begin + last - place))
            place += end - begin
        if not parts:
            return read(0, 0)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Halves:
    """Sums of the rows of either half of the images, and of the rest of the fitted ones; one sum of enough images.

    Parameters
    ----------
    order : FittedOrder
    points : int
        Rows of each image.
    sizes : tuple of int
        Inputs and responses of the layer.
    first : int
        Number of the first row that is added.
    device : torch.device or str

    Attributes
    ----------
    sums : list of decomp.problem.moments.MomentSum, or of decomp.problem.kept_rows.KeptRows
        Of the first half, the second one and the rest; or of all. Rows are kept where all of them are few.
    """

    def __init__(
        self, order: FittedOrder, points: int, sizes: tuple[int, int], first: int = 0, device: Device = "cpu"
    ) -> None:
        ends = accumulate(size * points for size in order.halves or ())
        self._ends, self._row = [*ends, order.n_fit * points], first
        self._empty = partial(sum_of_rows, *sizes, self._ends[-1], device)
        self.sums = [self._empty() for _ in self._ends]

    def add(self, X: Tensor, Y: Tensor) -> None:
        """Add the next fitted rows, in the order of the images."""
        for end, own in zip(self._ends, self.sums):
            n = min(max(end - self._row, 0), len(Y))
            if n:
                own.add(X[:n], Y[:n])
                self._row += n
                X, Y = X[n:], Y[n:]

    def whole(self) -> MomentSum | KeptRows:
        """The sum of all rows."""
        if len(self.sums) == 1:
            return self.sums[0]
        total: Any = self._empty()
        for own in self.sums:
            total.merge(own)
        return total
