"""Correct images of each class and network, and the images on which a network and the original differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ClassCounts:
    """Counts of correctly classified images, filled batch by batch.

    Parameters
    ----------
    names : sequence of str, optional
        Of the classes.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self._names = None if names is None else list(map(str, names))
        self._images = torch.zeros(0, dtype=torch.int64)
        self._correct: dict[str, Tensor] = {}
        self._changed: dict[str, dict[str, int]] = {}

    def add(self, labels: Tensor, correct: dict[str, Tensor]) -> None:
        """Count one batch.

        Parameters
        ----------
        labels : torch.Tensor of int64, shape (m,)
        correct : dict of str to torch.Tensor of bool, shape (m,)
            For each network, the original first, whether its first class is the label.
        """
        n_classes = max(int(labels.max()) + 1, len(self._names or ()), len(self._images))
        self._images = _sum(self._images, torch.bincount(labels, minlength=n_classes))
        reference = next(iter(correct.values()))
        for name, hits in correct.items():
            before = self._correct.get(name, torch.zeros(0, dtype=torch.int64))
            self._correct[name] = _sum(before, torch.bincount(labels[hits], minlength=n_classes))
            changed = self._changed.setdefault(name, {"lost": 0, "won": 0})
            changed["lost"] += int((reference & ~hits).sum())
            changed["won"] += int((~reference & hits).sum())

    def merge(self, other: ClassCounts) -> None:
        """Add what another one has counted on other images."""
        self._images = _sum(self._images, other._images)
        for name, correct in other._correct.items():
            self._correct[name] = _sum(self._correct.get(name, torch.zeros(0, dtype=torch.int64)), correct)
            changed = self._changed.setdefault(name, {"lost": 0, "won": 0})
            for kind, n in other._changed[name].items():
                changed[kind] += n

    def to_json(self) -> dict[str, Any]:
        """Plain data; empty where nothing was counted.

        Returns
        -------
        dict
            ``names``, None where the classes have none; ``images``, their number for each class; ``correct``, for each
            network, the correct ones among them; ``changed``, for each network, ``lost`` and ``won``: the number of
            images that only the original, and that only this network, classifies correctly.
        """
        if not self._correct:
            return {}
        return {
            "names": self._names, "images": self._images.tolist(),
            "correct": {name: counts.tolist() for name, counts in self._correct.items()},
            "changed": self._changed,
        }  # fmt: skip


def _sum(one: Tensor, other: Tensor) -> Tensor:
    """Sum of two vectors; the shorter one is continued with zeros."""
    total = torch.zeros(max(len(one), len(other)), dtype=torch.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total
