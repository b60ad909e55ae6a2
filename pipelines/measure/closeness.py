"""Closeness of a network's outputs to the original's: share of the variance that is lost, divergence, same classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from decomp.exact_sum import ExactSum
from decomp.execution.output_change import Outputs, divergence, squared_difference
from decomp.execution.output_kinds import Output
from decomp.execution.output_spread import Spread

from .intervals import share_words


class Closeness:
    """Comparison of two networks' outputs, batch by batch: the same in whatever groups the batches are added.

    Parameters
    ----------
    outputs : Outputs
        Of the original.
    """

    def __init__(self, outputs: Outputs) -> None:
        self.outputs, self.n = outputs, 0
        self.spread = Spread(outputs)
        self.squares = {entry.name: ExactSum(()) for entry in outputs.each}
        self.divergence = {entry.name: ExactSum(()) for entry in outputs.each if entry.kind == "scores"}
        self.same = dict.fromkeys(self.divergence, 0)

    def add(self, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
        """Add a batch of outputs of the original and of the other network, by name."""
        self.spread.add(wanted)
        self.n += len(next(iter(wanted.values())))
        for entry in self.outputs.each:
            one, other = wanted[entry.name], got[entry.name]
            self.squares[entry.name].add(squared_difference(one, other).sum())
            if entry.kind == "scores":
                self.divergence[entry.name].add(divergence(one, other, entry).sum())
                self.same[entry.name] += int((one.argmax(1) == other.argmax(1)).sum())

    def merge(self, other: Closeness) -> None:
        """Add the comparison of the same networks on other images."""
        self.spread.merge(other.spread)
        self.n += other.n
        for name, squares in other.squares.items():
            self.squares[name].merge(squares)
        for name, divergence_of_other in other.divergence.items():
            self.divergence[name].merge(divergence_of_other)
            self.same[name] += other.same[name]

    def result(self) -> dict[str, Any]:
        """The comparison as plain data.

        Returns
        -------
        dict
            ``images``, their number; ``outputs``, by name: ``kind``; ``relative``, the squared difference over the
            variance of the original's output on these images; for class scores also ``kl``, the mean Kullback–Leibler
            divergence in nats, and ``agreement``, the share of images with the same first class. ``relative`` is the
            mean over the outputs; ``kl`` and ``agreement`` are there where class scores are the only output.
        """
        found = {entry.name: self._of(entry) for entry in self.outputs.each}
        result: dict[str, Any] = {"images": self.n, "outputs": found}
        result["relative"] = sum(one["relative"] for one in found.values()) / len(found)
        if self.outputs.scores is not None:
            one = found[self.outputs.scores.name]
            result.update(kl=one["kl"], agreement=one["agreement"])
        return result

    def _of(self, entry: Output) -> dict[str, Any]:
        name = entry.name
        # On one image, or on images that an output does not tell apart, only its spread over all images is a scale.
        unknown = self.n < 2 or self.spread.is_constant(name)
        scale = entry.variance if unknown else self.spread.variance(name)
        found: dict[str, Any] = {"kind": entry.kind, "relative": float(self.squares[name].rounded()) / self.n / scale}
        if entry.kind == "scores":
            found.update(kl=float(self.divergence[name].rounded()) / self.n, agreement=self.same[name] / self.n)
        if entry.constant:
            found["constant"] = True
        return found


@torch.no_grad()
def compared(original: nn.Module, network: nn.Module, batches: Iterable[Tensor], outputs: Outputs) -> Closeness:
    """The comparison of a network with the original on batches of images (m, C, H, W).

    Parameters
    ----------
    original, network : torch.nn.Module
        In evaluation mode, on the device of the images.
    batches : iterable of torch.Tensor
    outputs : Outputs
        Of the original.
    """
    close = Closeness(outputs)
    for batch in batches:
        close.add(outputs.named(original(batch), len(batch)), outputs.named(network(batch), len(batch)))
    return close


def closeness_words(found: Mapping[str, Any], images: str) -> str:
    """A comparison in words: a line, and for several outputs one more for each.

    Parameters
    ----------
    found : mapping
        Of :meth:`Closeness.result`.
    images : str
        Such as ``held-out calibration images``.
    """
    n = found["images"]
    first = f"on {n:,} {images.replace('images', 'image', 1) if n == 1 else images}: outputs differ by"
    each = {name: _words(one, n) for name, one in found["outputs"].items()}
    if len(each) == 1:
        return f"{first} {next(iter(each.values()))}"
    lines = [f"{first} {percent(found['relative'])} of their variance, the mean of {len(each)} outputs"]
    return "\n".join([*lines, *(f"{name}: {words}" for name, words in each.items())])


def far_off(found: Mapping[str, Any], fits: bool = True) -> list[str]:
    """A warning where outputs differ by more than their variance, so that a constant would be closer; else nothing."""
    far = [name for name, one in found["outputs"].items() if one["relative"] > 1]
    if not far:
        return []
    which = f"{', '.join(far[:3])} differ" if len(found["outputs"]) > 1 else "the outputs differ"
    return [
        f"warning: {which} by more than they vary from image to image, so little of the original is left; try a "
        f"smaller speed-up{', more calibration images,' if fits else ''} or fine-tuning"
    ]


def _words(one: Mapping[str, Any], n: int) -> str:
    # An output that is the same for all images has no variance: its mean square is the scale.
    scale = "mean square (they are the same for all images)" if one.get("constant") else "variance"
    words = f"{percent(one['relative'])} of their {scale}"
    if one["kind"] == "scores":
        words += f", KL divergence {one['kl']:.3g}, same first class on {share_words(one['agreement'], n)}"
    return words


def percent(share: float) -> str:
    """A share with two significant digits, such as ``2.3 %``; it is a mean over few images."""
    if 0 < share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
