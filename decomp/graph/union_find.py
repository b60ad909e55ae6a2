"""Disjoint-set forest (union-find) over consecutive integers."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]


class UnionFind:
    """Disjoint sets of the integers 0, 1, …; the lowest member represents its set.

    Path halving without union by rank: that the representative is the lowest member, hence does not depend on the
    order of the unions, matters more here than the depth of the trees.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []

    def __len__(self) -> int:
        return len(self._parent)

    def add(self, count: int) -> IntArray:
        """The next ``count`` integers, each in a set of its own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def find(self, i: int) -> int:
        """The representative of the set that i is in."""
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def unite(self, a: IntArray, b: IntArray) -> None:
        """Unite the sets of a[k] and b[k] for every k of two arrays of equal length."""
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            i, j = self.find(i), self.find(j)
            if i != j:
                self._parent[max(i, j)] = min(i, j)

    def representatives(self) -> IntArray:
        """The representative of every integer."""
        return np.array([self.find(i) for i in range(len(self._parent))], dtype=np.int64)
