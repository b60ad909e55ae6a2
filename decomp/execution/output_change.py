r"""Change of a network's outputs as one number an image, in which each output is weighed by its own spread.

For one output, with y of the original and z of the other network on an image:

- class scores: the Kullback–Leibler divergence in nats, d(y, z) = Σ_c p_c (log p_c − log q_c);
- values: the mean squared difference of their D entries, d(y, z) = ‖y − z‖² / D.

Each has a number B that says how much the output changes between images, the mean of d from every image's output to
the best single one: for values the variance (the mean over the entries), for class scores the mutual information of
image and class, H(mean p) − mean H(p). Both are Bregman informations of d (Banerjee et al. 2005, "Clustering with
Bregman divergences"), so d / B is 1 for both kinds where a network forgets its image. Several outputs count the same:

.. math:: (1/K) \sum_k d_k(y_k, z_k) / B_k

A single output of values is divided by B too; a single one of class scores stays in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decomp.errors import UsageError
from decomp.execution.output_kinds import KINDS, Output, logits
from decomp.execution.outputs import named_tensors

# Entries that are compared at a time where no gradient is needed.
ENTRIES_AT_A_TIME = 1 << 24


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network in order, with their kinds and spreads.

    Attributes
    ----------
    each : tuple of Output
    """

    each: tuple[Output, ...]

    @property
    def scores(self) -> Output | None:
        """The output of a network that gives class scores and nothing else; None for any other."""
        return self.each[0] if len(self.each) == 1 and self.each[0].kind == "scores" else None

    def words(self) -> str:
        """Names, sizes and kinds in one line."""
        return ", ".join(f"{entry.name}: {entry.words()}" for entry in self.each)

    def notes(self) -> list[str]:
        """A line for each output whose kind was assumed, with the way to say it."""
        return [
            f"{entry.name}: rows of {entry.shape[0]} numbers are taken as values, since nothing says that they are "
            'class scores; if they are, say so with outputs="scores" (option --outputs scores)'
            for entry in self.each
            if entry.may_be_scores
        ]

    def named(self, output: Any, n_images: int | None = None) -> dict[str, Tensor]:
        """The tensors of an output by name, of the names and shapes that are described here.

        Raises
        ------
        UsageError
            They are others.
        """
        found = named_tensors(output, n_images)
        wanted = {entry.name: entry.shape for entry in self.each}
        got = {name: tuple(value.shape[1:]) for name, value in found.items()}
        if got != wanted:
            rule, fix = f"must be {_shapes(wanted)}", "give the network that was frozen"
            raise UsageError("the outputs", rule, got=_shapes(got), fix=fix)
        return found

    def change(self, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Tensor:
        """Change of the outputs of each image, see above.

        Parameters
        ----------
        wanted, got : mapping of str to torch.Tensor
            Of :meth:`named`, of the original and of the other network.

        Returns
        -------
        torch.Tensor, shape (N,), float64
        """
        if self.scores is not None:
            return divergence(wanted[self.scores.name], got[self.scores.name], self.scores)
        changes = [divergence(wanted[entry.name], got[entry.name], entry) / entry.spread for entry in self.each]
        return torch.stack(changes).mean(0) if len(changes) > 1 else changes[0]

    def loss(self, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Tensor:
        """Loss of a network that is trained without labels: the mean change, with that of class scores themselves.

        To the change of the outputs, every output of class scores adds the squared change of its scores over their
        variance. A sure original has almost the same probabilities on all images of a class, and few images then say
        little; its scores say more.

        Parameters
        ----------
        wanted, got : mapping of str to torch.Tensor
            As :meth:`change` takes them.

        Returns
        -------
        torch.Tensor
            A number, float64, with gradients of ``got``.
        """
        changes = [
            squared_difference(_about_mean(wanted[entry.name]), _about_mean(got[entry.name])).mean() / entry.variance
            for entry in self.each
            if entry.kind == "scores"
        ]
        value = self.change(wanted, got).mean()
        return value + torch.stack(changes).sum() / len(self.each) if changes else value

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [asdict(entry) for entry in self.each]

    @staticmethod
    def from_json(record: Sequence[Mapping[str, Any]]) -> Outputs:
        """The outputs out of plain data.

        Raises
        ------
        TypeError, ValueError, KeyError
            The data are not those of :meth:`to_json`.
        """
        each = tuple(Output(**{**entry, "shape": tuple(map(int, entry["shape"]))}) for entry in record)
        if not each or any(entry.kind not in KINDS or not 0 < float(entry.spread) < math.inf for entry in each):
            raise ValueError("no output, or one of an unknown kind or without a spread")
        return Outputs(each)


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} of {'×'.join(map(str, shape))}" for name, shape in shapes.items())


def _about_mean(scores: Tensor) -> Tensor:
    # A number that is added to all scores of an image changes no probability.
    return scores - scores.mean(1, keepdim=True)


def divergence(wanted: Tensor, got: Tensor, output: Output) -> Tensor:
    """Change d of one output of each image, not weighed: nats for class scores, mean squared difference for values.

    Parameters
    ----------
    wanted, got : torch.Tensor, shape (N, ...)
    output : Output

    Returns
    -------
    torch.Tensor, shape (N,), float64
    """
    if output.kind == "scores":
        return kl_divergence(logits(wanted.double(), output), logits(got.double(), output))
    return squared_difference(wanted, got)


def squared_difference(wanted: Tensor, got: Tensor) -> Tensor:
    """Mean squared difference of the entries of each image: (N,), float64, of two tensors (N, ...)."""
    n = max(1, ENTRIES_AT_A_TIME // max(wanted[:1].numel(), 1))
    if len(wanted) <= n or torch.is_grad_enabled():
        return (got.double() - wanted.double()).flatten(1).square().mean(dim=1)
    return torch.cat([squared_difference(a, b) for a, b in zip(wanted.split(n), got.split(n))])


def kl_divergence(wanted: Tensor, got: Tensor) -> Tensor:
    """Kullback–Leibler divergence in nats of softmax(got) from softmax(wanted), one number an image.

    Parameters
    ----------
    wanted, got : torch.Tensor, shape (N, classes)

    Returns
    -------
    torch.Tensor, shape (N,), float64
    """
    log_wanted, log_got = F.log_softmax(wanted.double(), dim=1), F.log_softmax(got.double(), dim=1)
    return (log_wanted.exp() * (log_wanted - log_got)).sum(dim=1)
