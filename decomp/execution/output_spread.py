"""Spread of a network's outputs over images, measured in one pass over batches in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from decomp.exact_sum import ExactSum
from decomp.execution.output_change import ENTRIES_AT_A_TIME, Outputs
from decomp.execution.output_kinds import Output, logits

# A variance below this share of the mean square is rounding of float32; a mutual information below it too, in nats.
CONSTANT = 1e-12


class Spread:
    """Variances of all outputs, and for class scores the mutual information of image and class.

    Parameters
    ----------
    outputs : Outputs
    """

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self._values = {entry.name: _Variance() for entry in outputs.each}
        self._scores = {entry.name: _Information() for entry in outputs.each if entry.kind == "scores"}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the outputs of a batch, as :meth:`Outputs.named` gives them."""
        for entry in self.outputs.each:
            value = tensors[entry.name].detach()
            self._values[entry.name].add(value)
            if entry.kind == "scores":
                self._scores[entry.name].add(F.log_softmax(logits(value.double(), entry), dim=1))

    def merge(self, other: Spread) -> None:
        """Add the spread of the same outputs over other images."""
        for name, found in other._values.items():
            self._values[name].merge(found)
        for name, scores in other._scores.items():
            self._scores[name].merge(scores)

    def variance(self, name: str) -> float:
        """Mean over an output's entries of their variance over the images."""
        return self._values[name].mean_square(about_mean=True)

    def is_constant(self, name: str) -> bool:
        """Whether the variance is no more than rounding."""
        found = self._values[name]
        return found.mean_square(about_mean=True) <= CONSTANT * found.mean_square(about_mean=False)

    def measured(self) -> Outputs:
        """The outputs with their variances and informations.

        Returns
        -------
        Outputs
            An output that is the same for all images has its mean square in place of the variance, so that a change
            counts relative to its size, and 1 where it is zero everywhere. Class scores that tell no images apart have
            an information of 1 nat.
        """
        return Outputs(tuple(map(self._measured, self.outputs.each)))

    def _measured(self, entry: Output) -> Output:
        constant = self.is_constant(entry.name)
        variance = self._values[entry.name].mean_square(about_mean=not constant) or 1.0
        information = self._scores[entry.name].information() if entry.kind == "scores" else 1.0
        information = information if information > CONSTANT else 1.0
        return replace(entry, variance=variance, information=information, constant=constant)


class _Variance:
    """Sums of every entry and of all squares, batch by batch; the same bits in whatever groups the batches are added.

    The variance is left of the squares when that of the mean is taken away. What rounding leaves then is far below
    CONSTANT of the squares.
    """

    def __init__(self) -> None:
        self.n, self.n_entries, self.squares = 0, 1, ExactSum(())
        self.sums: ExactSum | None = None

    def add(self, values: Tensor) -> None:
        for part in values.flatten(1).split(max(1, ENTRIES_AT_A_TIME // max(values[:1].numel(), 1))):
            rows = part.double()
            if self.sums is None:
                self.sums, self.n_entries = ExactSum(rows.shape[1:], rows.device), max(rows.shape[1], 1)
            self.sums.add(rows.sum(0))
            self.squares.add(rows.square().sum())
            self.n += len(rows)

    def merge(self, other: _Variance) -> None:
        if other.sums is None:
            return
        if self.sums is None:
            self.sums, self.n_entries = ExactSum(other.sums.high.shape, other.sums.high.device), other.n_entries
        self.sums.merge(other.sums)
        self.squares.merge(other.squares)
        self.n += other.n

    def mean_square(self, about_mean: bool) -> float:
        """Mean over images and entries of the squares, of the deviations or of the values themselves."""
        n, squares = max(self.n, 1), float(self.squares.rounded())
        if about_mean and self.sums is not None:
            squares = max(squares - float(self.sums.rounded().square().sum()) / n, 0.0)
        return squares / (n * self.n_entries)


class _Information:
    """Mutual information of image and class, H(mean p) − mean H(p), batch by batch."""

    def __init__(self) -> None:
        self.n, self.entropy = 0, ExactSum(())
        self.probabilities: ExactSum | None = None

    def add(self, log_probabilities: Tensor) -> None:
        p = log_probabilities.exp()
        if self.probabilities is None:
            self.probabilities = ExactSum(p.shape[1:], p.device)
        self.probabilities.add(p.sum(0))
        self.entropy.add(_entropy(p).sum())
        self.n += len(p)

    def merge(self, other: _Information) -> None:
        if other.probabilities is None:
            return
        if self.probabilities is None:
            self.probabilities = ExactSum(other.probabilities.high.shape, other.probabilities.high.device)
        self.probabilities.merge(other.probabilities)
        self.entropy.merge(other.entropy)
        self.n += other.n

    def information(self) -> float:
        if self.probabilities is None:
            return 0.0
        return float(_entropy(self.probabilities.rounded() / self.n)) - float(self.entropy.rounded()) / self.n


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)
