"""Loss of a compressed network on held-out training images: points of accuracy, changed first classes, or variance.

The images are training images that no fit has seen. For a network that gives class scores the loss is the accuracy of
the original minus that of the network where the source has labels, and the share of images whose first class changed
where it has none. For any other it is the squared change of the outputs over their variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decomp.execution.output_change import Outputs

from ...data.formats.digests import digest_json
from ...data.splits import Split
from .accuracy import check_labels, logits_of, outputs_of
from .intervals import Z, paired_difference, wilson

#: Most images that are looked at; so many give an interval of about ±0.3 points where 1 % of the images change.
MOST_IMAGES = 5000
IMAGES_AT_A_TIME = 250


@dataclass(frozen=True)
class HeldOutImages:
    """Training images that no fit has seen.

    Attributes
    ----------
    split : decomp.data.splits.Split
    indices : torch.LongTensor of shape (n,)
    data : str
        Name of the source.
    """

    split: Split
    indices: Tensor
    data: str

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(images, labels or None)."""
        return self.split.batches(self.indices, IMAGES_AT_A_TIME)

    def identity(self) -> str:
        """Digest of the source's images and of the indices."""
        return digest_json({"split": self.split.digest(), "indices": self.indices.tolist()})


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss of one network and its 95 % interval, as shares of the images.

    Attributes
    ----------
    kind : {'accuracy', 'agreement', 'values'}
    n_images : int
    loss, low, high : float
        In -1..1 for accuracy, in 0..1 for agreement, from 0 for values.
    original, network : float or None
        Their accuracies; None for the other kinds.
    """

    kind: str
    n_images: int
    loss: float
    low: float
    high: float
    original: float | None = None
    network: float | None = None

    @property
    def unit(self) -> str:
        """Head of a column of losses."""
        heads = {"accuracy": "points of accuracy lost", "agreement": "first classes changed, %"}
        return heads.get(self.kind, "variance lost, %")

    def words(self) -> str:
        """The loss in one line."""
        interval = f"95 % interval {100 * self.low:.2f} to {100 * self.high:.2f}"
        if self.kind == "accuracy":
            assert self.original is not None and self.network is not None  # this is what the kind means
            before, after = (f"{100 * share:.2f} %" for share in (self.original, self.network))
            return (
                f"{100 * self.loss:.2f} points of accuracy lost ({before} → {after}; {interval}) "
                f"on {self.n_images:,} held-out training images"
            )
        lost = f"{100 * self.loss:.2f} %"
        if self.kind == "values":
            return f"{lost} of the outputs' variance lost ({interval}) on {self.n_images:,} held-out images"
        return f"another first class on {lost} ({interval}) of {self.n_images:,} held-out images"

    def to_json(self) -> dict[str, Any]:
        """The values as plain data."""
        return asdict(self)


def images_outside_fits(n_train: int, fitted: Tensor, preferred: Tensor, most: int = MOST_IMAGES) -> Tensor:
    """Indices of training images that no fit has seen.

    Parameters
    ----------
    n_train : int
    fitted : torch.LongTensor
        Indices of images that were fitted.
    preferred : torch.LongTensor
        Taken first: images that a training with the same seed holds out, so that a network trained here has not seen
        them either.
    most : int

    Returns
    -------
    torch.LongTensor, sorted
    """
    free = torch.ones(n_train, dtype=torch.bool)
    free[fitted] = False
    first = preferred[free[preferred]]
    free[preferred] = False
    rest = torch.nonzero(free).flatten()
    # Evenly spread over the rest, since images of one class often lie side by side.
    missing = max(0, min(most - len(first), len(rest)))
    picked = rest[torch.linspace(0, len(rest) - 1, missing).round().long()] if missing else rest[:0]
    return torch.cat([first[:most], picked]).sort().values


def held_out_loss(
    original: nn.Module, network: nn.Module, images: HeldOutImages, device: torch.device, outputs: Outputs
) -> HeldOutLoss:
    """Compare a network with the original on held-out images.

    Parameters
    ----------
    original, network : torch.nn.Module
        On `device`; set to evaluation mode.
    images : HeldOutImages
    device : torch.device
    outputs : decomp.execution.output_change.Outputs
        Of the original.

    Raises
    ------
    UsageError
        A label is not below the number of classes.
    """
    if outputs.scores is None:
        return _changed_values(original, network, images, device, outputs)
    n, n_lost, n_won, n_changed, n_right = len(images), 0, 0, 0, 0
    for batch, labels in images.batches():
        before, after = logits_of(original, batch, device), logits_of(network, batch, device)
        n_changed += int((before.argmax(1) != after.argmax(1)).sum())
        if labels is not None:
            check_labels(labels, before, images.data)
            was, now = before.argmax(1) == labels, after.argmax(1) == labels
            n_right += int(was.sum())
            n_lost += int((was & ~now).sum())
            n_won += int((now & ~was).sum())
    if not images.split.has_labels:
        return HeldOutLoss("agreement", n, n_changed / n, *wilson(n_changed, n))
    interval = paired_difference(n_lost, n_won, n)
    return HeldOutLoss("accuracy", n, (n_lost - n_won) / n, *interval, n_right / n, (n_right - n_lost + n_won) / n)


def _changed_values(
    original: nn.Module, network: nn.Module, images: HeldOutImages, device: torch.device, outputs: Outputs
) -> HeldOutLoss:
    """Share of the outputs' variance that is lost, and the normal 95 % interval of its mean over the images."""
    changes = torch.cat([
        outputs.change(outputs_of(original, batch, device, outputs), outputs_of(network, batch, device, outputs))
        for batch, _ in images.batches()
    ])  # fmt: skip
    mean = float(changes.mean())
    half = Z * float(changes.std()) / len(changes) ** 0.5 if len(changes) > 1 else math.inf
    return HeldOutLoss("values", len(changes), mean, max(mean - half, 0.0), mean + half)
