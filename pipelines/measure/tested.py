"""Accuracy and closeness of networks on images that no fit has seen: test images, or held-out calibration images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from decomp.execution.output_change import Outputs

from ...data import given
from ...data.formats.frozen_file import FrozenFile
from ...data.splits import Split
from ...data.transforms import Shape
from ..console.reporter import Reporter
from ..distributed.process_group import own_batches
from ..run.calibration import fitted_images
from ..run.conditions import freeze_options
from ..run.directory import RunDirectory
from ..run.images import open_images
from ..run.loading import run_outputs
from .class_counts import ClassCounts
from .shares import Batches, Shares, images_at_a_time, measure_shares

#: Columns of a network that are measured on images.
ON_IMAGES = ("top1", "top5", "agreement", "divergence", "lost", "outputs")


@dataclass(frozen=True)
class Tested:
    """Measurements on images: the columns of each network, correct images of classes, conditions, notes."""

    columns: dict[str, dict[str, Any]]
    classes: dict[str, Any]
    facts: dict[str, Any]
    notes: list[str]


def measure_on_images(
    run: RunDirectory,
    networks: Mapping[str, nn.Module],
    shape: Shape,
    device: torch.device,
    reporter: Reporter,
) -> Tested:
    """Accuracy and closeness of the networks of a run on images.

    Parameters
    ----------
    run : RunDirectory
    networks : dict of str to Module
        The original first.
    shape : tuple of int
        (C, H, W) of an image.
    device : torch.device
    reporter : Reporter
    """
    outputs, shares, counts = run_outputs(run), {}, ClassCounts(None)
    with _images(run, shape, outputs) as images:
        if images is not None:
            counts = ClassCounts(images.class_names)
            shares = measure_shares(
                networks, images.batches, images.n, outputs, images.data, device, reporter, counts
            )  # fmt: skip
    facts = {
        "data": freeze_options(run).data if images is None else images.data,
        "n_images": 0 if images is None else images.n, "images": "" if images is None else images.words,
        "test_digest": None if images is None else images.digest,
    }  # fmt: skip
    columns = {name: _columns(shares.get(name)) for name in networks}
    return Tested(columns, counts.to_json(), facts, [] if images is None else images.notes)


@dataclass(frozen=True)
class _Images:
    """Images on which the networks are compared: the test split, or the held-out calibration images."""

    words: str
    data: str
    n: int
    batches: Batches
    notes: list[str]
    class_names: Sequence[str] | None = None
    digest: str | None = None


@contextmanager
def _images(run: RunDirectory, shape: Shape, outputs: Outputs) -> Iterator[_Images | None]:
    """The images to compare on, with the reasons for empty columns; None where there are none at all."""
    size = images_at_a_time(outputs, shape)
    if freeze_options(run).data == given.NAME:
        data, reason = given.NAME, "the images were given to decomp.compress, and none of them for tests"
    else:
        source = open_images(run)
        test, data, reason = source.test, source.name, f"{source.name} has no test images"
        if test is not None and len(test):
            batches = test.batches(torch.tensor(own_batches(len(test), size), dtype=torch.int64), size)
            notes, names = _notes(test, outputs, data), source.class_names
            yield _Images("test images", data, len(test), batches, notes, names, test.digest())
            return
    if not run.frozen.is_file():
        yield None
        return
    with FrozenFile(run.frozen) as frozen:
        first = fitted_images(frozen.n_images)
        own = own_batches(frozen.n_images - first, size)
        starts, end = range(first + own.start, first + own.stop, size), first + own.stop
        held_out = ((frozen.images(start, min(start + size, end)), None) for start in starts)
        note = f"no accuracy: {reason}; the outputs are compared on calibration images that no fit has seen"
        yield _Images("held-out calibration images", data, frozen.n_images - first, held_out, [note])


def _notes(test: Split, outputs: Outputs, data: str) -> list[str]:
    if outputs.scores is None:
        reason = "" if test.has_labels else ", and the test images have no labels"
        rule = f"no accuracy: it needs class scores as the only output, here {outputs.words()}{reason}"
        return [rule, *outputs.notes()]
    return [] if test.has_labels else [f"no accuracy: the test images of {data} have no labels"]


def _columns(shares: Shares | None) -> dict[str, Any]:
    """The columns of a row that are measured on images."""
    if shares is None:
        return {"top1": None, "top5": None, "agreement": None, "divergence": None, "lost": None, "outputs": {}}
    close = shares.close
    return {
        "top1": shares.top1, "top5": shares.top5, "agreement": close.get("agreement"), "divergence": close.get("kl"),
        "lost": close["relative"], "outputs": close["outputs"],
    }  # fmt: skip
