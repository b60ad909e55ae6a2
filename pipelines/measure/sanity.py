"""Sanity check of the original network on the calibration images: accuracy, confidence, or spread of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decomp.execution.outputs import named_tensors

from .intervals import share_words, wilson

#: An accuracy is near chance below this part of the way from the share of the most frequent class to 1.
NEAR_CHANCE = 0.25
#: Of images with one label alone, the accuracy below which it is in doubt.
LEAST_OF_ONE_LABEL = 0.5
#: Fewer images do not tell the order of the labels.
LEAST_FOR_ORDER = 20
#: Another order must raise the accuracy by this, beyond the error of a sample.
LEAST_GAIN = 0.05
#: Values vary too little below this share of their root mean square.
CONSTANT = 1e-4
_CAUSES = "likely causes: other mean and std than in training, labels in another order, or weights that do not belong"


class Sanity:
    """Collector of the original's outputs, batch by batch.

    Top class and confidence are kept where the output is class scores alone, range and spread for all others.

    Parameters
    ----------
    scores : bool
        Whether it is class scores alone.
    """

    def __init__(self, scores: bool) -> None:
        self._scores = scores
        self._top: list[Tensor] = []
        self._confidence: list[Tensor] = []
        self._n_classes: int | None = None
        self._values: dict[str, _Spread] = {}

    def add(self, output: Any) -> None:
        """Take in the output for the next batch."""
        tensors = {name: value.detach().float().cpu() for name, value in named_tensors(output).items()}
        first = next(iter(tensors.values()))
        if self._scores:
            likely = _probabilities(first)
            self._n_classes = first.shape[1]
            self._confidence.append(likely.amax(1))
            self._top.append(first.argmax(1))
            return
        for name, value in tensors.items():
            self._values.setdefault(name, _Spread()).add(value)

    def facts(self, labels: Tensor | None, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """What the outputs say, as plain data.

        Parameters
        ----------
        labels : Tensor of int64, shape (N,), optional
            Of the images in the order in which they were added.
        class_names : sequence of str, optional

        Returns
        -------
        dict
            ``n_images``; for class scores ``n_classes``, ``confidence`` (mean probability of the top class) and
            ``n_top_classes`` (different top classes); with labels ``accuracy``, its 95 % ``interval``, ``chance``
            (share of the most frequent label), ``near_chance``, ``n_labels`` (different labels) and ``order`` (see
            :func:`best_order`); for values ``values``.
        """
        if self._n_classes is None:
            return {"values": {name: spread.facts() for name, spread in self._values.items()}}
        top, confidence = torch.cat(self._top), torch.cat(self._confidence)
        facts: dict[str, Any] = {
            "n_images": len(top), "n_classes": self._n_classes, "confidence": float(confidence.mean()),
            "n_top_classes": len(top.unique()),
        }  # fmt: skip
        if labels is None or len(labels) != len(top):
            return facts
        correct = int((top == labels).sum())
        accuracy = correct / len(top)
        chance = float(labels.bincount().max()) / len(top)
        n_labels = len(labels.unique())
        # Always the only label is right for all images, and so no chance to compare with.
        near = accuracy < (chance + NEAR_CHANCE * (1 - chance) if n_labels > 1 else LEAST_OF_ONE_LABEL)
        return {
            **facts, "accuracy": accuracy, "interval": list(wilson(correct, len(top))), "chance": chance,
            "near_chance": near, "n_labels": n_labels, "largest_label": int(labels.max()),
            "order": best_order(labels, top),
            "numbered": numbered_out_of_order(class_names or ()),
        }  # fmt: skip


class _Spread:
    """Range and deviation over the images of one output, over batches."""

    def __init__(self) -> None:
        self.n = 0
        self.low, self.high = float("inf"), float("-inf")
        self.sum: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, value: Tensor) -> None:
        value = value.double().flatten(1)
        self.n += len(value)
        self.low, self.high = min(self.low, float(value.min())), max(self.high, float(value.max()))
        total, squares = value.sum(0), value.square().sum(0)
        self.sum = total if self.sum is None else self.sum + total
        self.squares = squares if self.squares is None else self.squares + squares

    def facts(self) -> dict[str, float]:
        assert self.sum is not None and self.squares is not None
        mean, square = self.sum / self.n, self.squares / self.n
        deviation = float((square - mean.square()).clamp_min(0).mean().sqrt())
        return {"low": self.low, "high": self.high, "deviation": deviation, "size": float(square.mean().sqrt())}


def _probabilities(scores: Tensor) -> Tensor:
    """Probabilities of classes: the scores themselves where they are such, else their softmax."""
    if bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all()):
        return scores
    return scores.softmax(1)


def best_order(labels: Tensor, top: Tensor) -> dict[str, Any] | None:
    """Whether the labels are the network's classes in another order.

    The one-to-one assignment of labels to classes that makes most predictions right is found on a random half of the
    images, and tried on the others.

    Parameters
    ----------
    labels, top : Tensor of int64, shape (N,)
        Labels, and classes that the network predicts.

    Returns
    -------
    dict or None
        ``accuracy`` on the others, and ``classes``, for each label the network's class. None where the assignment is
        right for less than half of them, or not clearly for more than without; for few images; and where there is one
        label alone or one predicted class alone, for which an assignment is always right.
    """
    from scipy.optimize import linear_sum_assignment

    if len(labels) < LEAST_FOR_ORDER:
        return None
    fit, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).chunk(2)
    known, row = labels.unique(return_inverse=True)
    predicted, column = top.unique(return_inverse=True)
    if len(known) < 2 or len(predicted) < 2:
        return None
    counts = torch.zeros(len(known), len(predicted), dtype=torch.int64)
    counts.index_put_((row[fit], column[fit]), torch.ones(len(fit), dtype=torch.int64), accumulate=True)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    classes = torch.arange(int(labels.max()) + 1)
    classes[known[rows]] = predicted[columns]
    right = int((classes[labels[test]] == top[test]).sum())
    before = float((labels[test] == top[test]).double().mean())
    if right < len(test) / 2 or wilson(right, len(test))[0] < before + LEAST_GAIN:
        return None
    return {"accuracy": right / len(test), "classes": classes.tolist()}


def numbered_out_of_order(names: Sequence[str]) -> bool:
    """Whether names of classes are numbers in alphabetical order, such as 0, 1, 10, 2."""
    numbers = [int(name) for name in names if name.isdecimal()]
    return len(numbers) == len(names) > 0 and numbers != sorted(numbers)


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts in words, with a warning where they say that network and images do not belong together."""
    if "values" in facts:
        return [line for name, entry in facts["values"].items() for line in _value_lines(name, entry)]
    if "accuracy" not in facts:
        return _confidence_lines(facts)
    said = (
        f"accuracy of the original on the {facts['n_images']:,} calibration images: "
        f"{share_words(facts['accuracy'], facts['n_images'])}; always the most frequent class: "
        f"{100 * facts['chance']:.1f} %"
    )
    order = facts["order"]
    if not facts["near_chance"] and order is None:
        return [said]
    if order is not None:
        moved = [f"{label}→{to}" for label, to in enumerate(order["classes"]) if label != to]
        fix = "; the labels of a folder of images are the places of its class folders in alphabetical order"
        fix = "; the folders count 0, 1, 10, 2, …: name them 00, 01, 02, …" if facts["numbered"] else fix
        warning = (
            "the labels seem to be in another order than the network's classes: reordered, "
            f"{100 * order['accuracy']:.0f} % of the predictions are right; "
            f"label→class {', '.join(moved[:6])}{', …' if len(moved) > 6 else ''}{fix}"
        )
    elif facts["largest_label"] >= facts["n_classes"]:
        warning = (
            f"the labels go up to {facts['largest_label']}, the network has {facts['n_classes']} outputs: "
            "are these the images that it was trained for?"
        )
    elif facts.get("n_labels", 2) < 2:
        gets = "get one other class" if facts.get("n_top_classes") == 1 else "mostly get other classes"
        warning = (
            f"all images have one label, {facts['largest_label']}, and {gets}; the label of an image in a folder is "
            "the place of its class folder in alphabetical order: give all class folders of the network, or tune "
            "without labels"
        )
    elif facts.get("n_top_classes") == 1:  # runs of earlier versions did not count them
        warning = f"all images get one class; {_CAUSES.replace(' labels in another order,', '')} to this network"
    else:
        warning = f"near chance; {_CAUSES} to this network"
    return [said, f"warning: {warning}"]


def doubts(freeze: Mapping[str, Any] | None) -> list[str]:
    """Warnings about the original in the record of freeze, which a result close to it would hide."""
    facts = ((freeze or {}).get("facts") or {}).get("sanity")
    found = lines(facts) if facts else []
    return [line for number, line in enumerate(found) if any(other.startswith("warning") for other in found[number:])]


def _confidence_lines(facts: dict[str, Any]) -> list[str]:
    n_top, n_classes, confidence = facts["n_top_classes"], facts["n_classes"], facts["confidence"]
    said = (
        f"the original on the {facts['n_images']:,} calibration images: mean probability of its top class "
        f"{100 * confidence:.1f} %, {n_top:,} of {n_classes:,} classes are a top class"
    )
    if n_top == 1 or confidence < 1.5 / n_classes:
        kind = "all images get one class" if n_top == 1 else "the network does not decide for any class"
        return [said, f"warning: {kind}; {_CAUSES.replace(' labels in another order,', '')} to this network"]
    return [said]


def _value_lines(name: str, entry: dict[str, float]) -> list[str]:
    said = (
        f"{name}: values from {entry['low']:.3g} to {entry['high']:.3g}, deviation over the images "
        f"{entry['deviation']:.3g}"
    )
    if entry["deviation"] <= CONSTANT * entry["size"]:
        return [said, f"warning: {name} is the same for all images; are weights and mean and std those of training?"]
    return [said]
