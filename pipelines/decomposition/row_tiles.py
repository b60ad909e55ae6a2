"""Tiles of the rows of a layer: the same ones for any batch size and any number of processes.

A product of a tile is rounded as a whole, so the same tiles give the same moments up to the order of a sum in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decomp.problem.moments import TILE_ROWS

from ..distributed.process_group import count, number, pass_on

#: Rows that one process works on together: whole tiles of moments, and whole tiles of activation-aware fits.
BLOCK_ROWS = 2 * TILE_ROWS

# Rows X (m, c, kh, kw) and wanted responses Y (m, n).
Rows = tuple[Tensor, Tensor]
# Images start ... stop - 1, and their rows X (m, P, c, kh, kw) and Y (m, P, n).
BatchOfRows = tuple[int, int, Rows]


def tiles(
    batches: Iterable[BatchOfRows], n_fit: int, images: Sequence[range], points: int
) -> Iterator[tuple[bool, Rows]]:
    """Cut the rows of this process into tiles of TILE_ROWS; the last one of fitted or of held-out rows may be smaller.

    Rows in front of the first whole block of a process go to the process in which that block begins, at the end.

    Parameters
    ----------
    batches : iterable of (start, stop, rows)
        Of this process, in order.
    n_fit : int
        Images before this one are fitted, the others held out.
    images : sequence of range
        Images of each process, consecutive.
    points : int
        Rows of each image.

    Yields
    ------
    fitted : bool
    tile : (X, Y)
    """
    fitted = _Cutter(fitted_layout(n_fit, images, points))
    others = _Cutter(Layout([range(max(r.start, n_fit), max(r.stop, n_fit)) for r in images], points))
    for start, stop, (X, Y) in batches:
        end = max(start, min(stop, n_fit)) - start
        if end:
            yield from ((True, tile) for tile in fitted.add((X[:end].flatten(0, 1), Y[:end].flatten(0, 1))))
        if end < stop - start:
            if not fitted.layout.gets_rows:
                yield from ((True, tile) for tile in fitted.rest())
            yield from ((False, tile) for tile in others.add((X[end:].flatten(0, 1), Y[end:].flatten(0, 1))))
    for cutter, kind in ((fitted, True), (others, False)):
        cutter.exchange()
        yield from ((kind, tile) for tile in cutter.rest())


@dataclass(frozen=True)
class Layout:
    """Rows of the fitted or of the held-out images and their processes.

    Attributes
    ----------
    images : list of range
        Of each process, consecutive from the first one on; may be empty.
    points : int
        Rows of each image.
    """

    images: list[range]
    points: int

    def rows(self, rank: int) -> range:
        """Numbers of the rows of a process."""
        first = next((r.start for r in self.images if r), 0)
        own = self.images[rank]
        return range((own.start - first) * self.points, (own.stop - first) * self.points) if own else range(0)

    def head(self, rank: int) -> int:
        """How many rows of a process belong to a block that begins in another one."""
        own = self.rows(rank)
        return min(len(own), -own.start % BLOCK_ROWS)

    def first(self, rank: int) -> int:
        """Number of the first row that stays in a process."""
        return self.rows(rank).start + self.head(rank)

    def target(self, rank: int) -> int:
        """The process in which the block of the first rows of `rank` begins."""
        first = self.rows(rank).start // BLOCK_ROWS * BLOCK_ROWS
        return next(other for other in range(len(self.images)) if first in self.rows(other))

    @property
    def gets_rows(self) -> bool:
        """Whether other processes have rows of a block that begins in this one."""
        return bool(self.senders())

    def senders(self) -> list[int]:
        """The processes with rows of a block that begins in this one, in order."""
        others = (rank for rank in range(len(self.images)) if rank != number() and self.head(rank))
        return [rank for rank in others if self.target(rank) == number()]


def fitted_layout(n_fit: int, images: Sequence[range], points: int) -> Layout:
    """Rows of the images in front of image ``n_fit``; other parameters as in :func:`tiles`."""
    return Layout([range(min(r.start, n_fit), min(r.stop, n_fit)) for r in images], points)


class _Cutter:
    """Collects rows and cuts them into tiles."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._head_left = layout.head(number()) if count() > 1 else 0
        self._head: list[Rows] = []
        self._waiting: list[Rows] = []
        self._like: Rows | None = None

    def add(self, rows: Rows) -> Iterator[Rows]:
        """The tiles that these rows fill."""
        self._like = rows[0][:1], rows[1][:1]
        if self._head_left:
            n = min(self._head_left, len(rows[1]))
            self._head.append((rows[0][:n], rows[1][:n]))
            self._head_left -= n
            rows = rows[0][n:], rows[1][n:]
            if not len(rows[1]):
                return
        self._waiting.append(rows)
        if sum(len(Y) for _, Y in self._waiting) >= TILE_ROWS:
            cut = self._cut()
            if len(cut[-1][1]) < TILE_ROWS:
                self._waiting = [cut.pop()]
            yield from cut

    def rest(self) -> Iterator[Rows]:
        """The tiles of the rows that are left."""
        if self._waiting:
            yield from self._cut()

    def exchange(self) -> None:
        """Send the rows of a block of another process, and get those of the block that ends here.

        On the CPU: between two processes also where the others travel by NCCL.
        """
        layout, sent, awaited = self.layout, dict[int, Tensor](), dict[int, Tensor]()
        if self._head:
            X, Y = (torch.cat(parts).cpu() for parts in zip(*self._head))
            self._head = []
            sent[layout.target(number())] = torch.cat([X.flatten(1), Y], 1)
        for rank in layout.senders():
            assert self._like is not None  # a block begins in this process
            X, Y = self._like
            awaited[rank] = torch.empty(layout.head(rank), X[0].numel() + Y.shape[1], dtype=Y.dtype)
        pass_on(sent, awaited)
        for packed in awaited.values():
            inputs, responses = packed.to(Y.device).tensor_split([X[0].numel()], 1)
            self._waiting.append((inputs.reshape(-1, *X.shape[1:]), responses))

    def _cut(self) -> list[Rows]:
        X, Y = (torch.cat(parts) for parts in zip(*self._waiting))
        self._waiting = []
        return list(zip(X.split(TILE_ROWS), Y.split(TILE_ROWS)))
