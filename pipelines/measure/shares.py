"""Shares of images that several networks answer right, or as the original does, and their other closeness to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decomp.execution.output_change import Outputs

from ..console.reporter import Reporter
from ..distributed.process_group import count, gathered, number
from .accuracy import ENTRIES_AT_A_TIME, check_labels, outputs_of
from .class_counts import ClassCounts
from .closeness import Closeness

IMAGES_AT_A_TIME = 250

#: Images (m, C, H, W) and their labels (m,) or None.
Batches = Iterator[tuple[Tensor, Tensor | None]]


@dataclass
class Shares:
    """Measurements of one network; shares in 0..1, None where they cannot be measured.

    Attributes
    ----------
    top1, top5 : float or None
        Share of the images whose label is the first class, or one of the first five.
    close : dict
        Of :meth:`decomp.pipelines.measure.closeness.Closeness.result`.
    """

    top1: float | None
    top5: float | None
    close: dict[str, Any]


def images_at_a_time(outputs: Outputs, shape: tuple[int, int, int]) -> int:
    """Size of the batches that networks are compared in, smaller for large images or outputs."""
    entries = max(sum(math.prod(entry.shape) for entry in outputs.each), math.prod(shape))
    return max(1, min(IMAGES_AT_A_TIME, ENTRIES_AT_A_TIME // max(entries, 1)))


def measure_shares(
    networks: Mapping[str, nn.Module],
    batches: Batches,
    n_images: int,
    outputs: Outputs,
    data: str,
    device: torch.device,
    reporter: Reporter,
    counts: ClassCounts,
) -> dict[str, Shares]:
    """Measure networks on the same images.

    Parameters
    ----------
    networks : mapping of str to torch.nn.Module
        The original first; on ``device``.
    batches : iterator of (images, labels)
        Of this process's share of the images. Labels count where the networks return class scores alone.
    n_images : int
        Of all processes.
    outputs : Outputs
    data : str
        Name of the image source, for messages.
    device : torch.device
    reporter : Reporter
    counts : ClassCounts
        Filled with the correct images of each class.

    Returns
    -------
    dict of str to Shares
        By the names of the networks.

    Raises
    ------
    UsageError
        A label is beyond the network's classes.
    """
    hits: dict[str, list[int]] = {name: [0, 0] for name in networks}
    close = {name: Closeness(outputs) for name in networks}
    labelled = False
    with reporter.progress(n_images, "test", "images") as progress:
        for images, labels in batches:
            wanted: dict[str, Tensor] | None = None
            correct: dict[str, Tensor] = {}
            for name, network in networks.items():
                got = outputs_of(network, images, device, outputs)
                wanted = got if wanted is None else wanted
                close[name].add(wanted, got)
                if labels is not None and outputs.scores is not None:
                    scores, labelled = got[outputs.scores.name], True
                    check_labels(labels, scores, data)
                    correct[name] = topk_correct(scores, labels, 1)
                    hits[name][0] += int(correct[name].sum())
                    hits[name][1] += topk_hits(scores, labels, 5)
            if labels is not None and correct:
                counts.add(labels, correct)
            progress.update(len(images))
        progress.update(n_images - progress.done)  # those of other processes
    hits, close, labelled = _of_all_processes(hits, close, labelled, counts)
    shares = {name: [n / n_images if labelled else None for n in both] for name, both in hits.items()}
    return {name: Shares(top1, top5, close[name].result()) for name, (top1, top5) in shares.items()}


def _of_all_processes(
    hits: dict[str, list[int]], close: dict[str, Closeness], labelled: bool, counts: ClassCounts
) -> tuple[dict[str, list[int]], dict[str, Closeness], bool]:
    """Sums over all processes, the same in each; `counts` is summed in place."""
    if count() == 1:
        return hits, close, labelled
    (hits, close, labelled, _), *others = found = gathered((hits, close, labelled, counts))
    for other_hits, other_close, other_labelled, _ in others:
        labelled = labelled or other_labelled
        for name in hits:
            hits[name] = [one + other for one, other in zip(hits[name], other_hits[name])]
            close[name].merge(other_close[name])
    for place, (*_, other_counts) in enumerate(found):
        if place != number():
            counts.merge(other_counts)
    return hits, close, labelled


def topk_hits(logits: Tensor, labels: Tensor, k: int) -> int:
    """Number of rows whose label is among the `k` highest logits, see :func:`topk_correct`."""
    return int(topk_correct(logits, labels, k).sum())


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Rows whose label is among the `k` highest logits; a tie goes to the lower class number.

    Parameters
    ----------
    logits : Tensor (m, n_classes)
        A row with NaN has no hit.
    labels : LongTensor (m,)
    k : int

    Returns
    -------
    BoolTensor (m,)
    """
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1])
    # Written so that NaN counts as ahead of everything.
    ahead = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
    return ahead.sum(1) < k
