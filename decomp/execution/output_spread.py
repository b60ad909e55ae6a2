"""Spread of a network's outputs over images, measured in one pass over batches in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """Mean and squared deviations of every entry, batch by batch (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.n, self.n_entries, self.deviation = 0, 1, 0.0
        self.mean = torch.zeros(0)

    def add(self, values: Tensor) -> None:
        for part in values.flatten(1).split(max(1, ENTRIES_AT_A_TIME // max(values[:1].numel(), 1))):
            rows = part.double()
            mean = rows.mean(0)
            self.deviation += float((rows - mean).square().sum())
            if self.n:
                step, total = mean - self.mean, self.n + len(rows)
                self.deviation += float(step.square().sum()) * self.n * len(rows) / total
                self.mean = self.mean + step * (len(rows) / total)
            else:
                self.mean, self.n_entries = mean, max(mean.numel(), 1)
            self.n += len(rows)

    def merge(self, other: _Variance) -> None:
        if not other.n or not self.n:
            kept = self if self.n else other
            self.n, self.n_entries, self.deviation, self.mean = kept.n, kept.n_entries, kept.deviation, kept.mean
            return
        step, total = other.mean - self.mean, self.n + other.n
        self.deviation += other.deviation + float(step.square().sum()) * self.n * other.n / total
        self.mean, self.n = self.mean + step * (other.n / total), total

    def mean_square(self, about_mean: bool) -> float:
        """Mean over images and entries of the squares, of the deviations or of the values themselves."""
        variance = self.deviation / (max(self.n, 1) * self.n_entries)
        return variance if about_mean else variance + float(self.mean.square().sum()) / self.n_entries


class _Information:
    """Mutual information of image and class, H(mean p) − mean H(p), batch by batch."""

    def __init__(self) -> None:
        self.n, self.entropy = 0, 0.0
        self.probabilities = torch.zeros(0)

    def add(self, log_probabilities: Tensor) -> None:
        p = log_probabilities.exp()
        total = p.sum(0)
        self.probabilities = self.probabilities + total if self.n else total
        self.entropy += float(_entropy(p).sum())
        self.n += len(p)

    def merge(self, other: _Information) -> None:
        if other.n:
            self.probabilities = self.probabilities + other.probabilities if self.n else other.probabilities
            self.n, self.entropy = self.n + other.n, self.entropy + other.entropy

    def information(self) -> float:
        n = max(self.n, 1)
        return float(_entropy(self.probabilities / n)) - self.entropy / n


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)
