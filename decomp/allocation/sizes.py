"""Allowed sizes of a layer: multiples where it is wide enough, and a grid of them for the search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRID = 24
# A multiple gives way where it would leave fewer sizes than this.
FEWEST = 8


def fitting_multiple(width: int, multiple: int) -> int:
    """Multiple for the sizes of a layer of this width.

    The given one where the layer has at least eight times as many channels; otherwise the half of it for which
    that holds, or the half of that, down to 1. So with 8: multiples of 8 from 64 channels on, of 4 from 32, of 2
    from 16, and any size below.

    Parameters
    ----------
    width : int
        Channels: of the space for a width, of the outputs for a channel rank, the fewer of inputs and outputs for a
        spatial rank.
    multiple : int

    Returns
    -------
    int
    """
    while multiple > 1 and width < FEWEST * multiple:
        multiple //= 2
    return max(multiple, 1)


def allowed_sizes(limit: int, multiple: int) -> NDArray[np.int64]:
    """Multiples of ``multiple`` up to ``limit``, and the limit itself.

    Returns
    -------
    numpy.ndarray of int, ascending
    """
    return np.unique([*range(multiple, limit + 1, multiple), limit])


def on_grid(sizes: NDArray[np.int64]) -> list[int]:
    """About GRID of the sizes, finer towards the small end; the smallest and the largest are among them."""
    if len(sizes) <= GRID:
        return [int(size) for size in sizes]
    wanted = np.geomspace(max(sizes[0], sizes[-1] / 48), sizes[-1], GRID)
    nearest = sizes[np.abs(sizes[None, :] - wanted[:, None]).argmin(axis=1)]
    return sorted({int(size) for size in (sizes[0], *nearest)})
