"""Fidelity: difference between the outputs of two networks on held-out calibration images, and on fitted ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from decomp.execution.output_change import Outputs

from ...data.formats.frozen_file import FrozenFile
from ..distributed.process_group import gathered, own_batches
from .closeness import closeness_words, compared, far_off, percent

#: A difference on held-out images that is above FAR times that on fitted ones, and above LEAST, is warned of.
FAR, LEAST = 3.0, 0.02
#: Words of that warning by which it is known that it was given.
FEW_IMAGES = "images are too few for this network"


def compare(
    original: nn.Module,
    network: nn.Module,
    frozen: FrozenFile,
    first: int,
    batch_size: int,
    device: torch.device,
    outputs: Outputs,
    fits: bool = True,
) -> dict[str, Any]:
    """Compare the outputs of a network with those of the original on calibration images from ``first`` on.

    Parameters
    ----------
    original, network : torch.nn.Module
        In evaluation mode on ``device``.
    frozen : decomp.data.formats.frozen_file.FrozenFile
    first : int
        Images before this one were used for fitting.
    batch_size : int
        Of several processes each looks at its share of the images.
    device : torch.device
    outputs : decomp.execution.output_change.Outputs
    fits : bool
        Whether layers were fitted, so that more images may help.

    Returns
    -------
    dict
        As :meth:`decomp.pipelines.measure.closeness.Closeness.result`; ``fitted``, the same on as many images that were
        used for fitting; and ``words``: a summary line, with a line for each of several outputs, a warning where they
        are far off or much closer on the fitted images, and one for each output whose kind was assumed.
    """

    def measured(begin: int, end: int) -> dict[str, Any]:
        mine = own_batches(end - begin, batch_size)
        starts = range(begin + mine.start, begin + mine.stop, batch_size)
        batches = (frozen.images(start, min(start + batch_size, begin + mine.stop)).to(device) for start in starts)
        close, *others = gathered(compared(original, network, batches, outputs))
        for other in others:
            close.merge(other)
        return close.result()

    found = measured(first, frozen.n_images)
    if first and fits:
        found["fitted"] = measured(0, min(first, found["images"]))
    words = closeness_words(found, "held-out calibration images")
    lines = [words, *far_off(found, fits), *(learned_by_heart(found, first) if fits else []), *outputs.notes()]
    return {**found, "words": "\n".join(lines)}


def learned_by_heart(found: Mapping[str, Any], n_fit: int) -> list[str]:
    """A warning where the difference on held-out images is far above that on fitted ones; else nothing.

    Parameters
    ----------
    found : mapping
        Of :func:`compare`.
    n_fit : int
        Images that were used for fitting.
    """
    unseen, seen = found["relative"], (found.get("fitted") or found)["relative"]
    if unseen <= max(LEAST, FAR * seen):
        return []
    return [
        f"warning: on images that were fitted the outputs differ by {percent(seen)} of their variance, so the "
        f"{n_fit:,} fitted {FEW_IMAGES}: more calibration images, also unlabelled ones, bring "
        "both numbers together, and so does fine-tuning without labels on more images"
    ]
