"""Fidelity: difference between the outputs of two networks on held-out calibration images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from decomp.execution.output_change import Outputs

from ...data.formats.frozen_file import FrozenFile
from .closeness import Closeness, closeness_words, far_off


def compare(
    original: nn.Module,
    network: nn.Module,
    frozen: FrozenFile,
    first: int,
    batch_size: int,
    device: torch.device,
    outputs: Outputs,
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
    device : torch.device
    outputs : decomp.execution.output_change.Outputs

    Returns
    -------
    dict
        As :meth:`decomp.pipelines.measure.closeness.Closeness.result`, and ``words``: a summary line, with a line for
        each of several outputs, a warning where they are far off, and one for each output whose kind was assumed.
    """
    close = Closeness(outputs)
    with torch.no_grad():
        for start in range(first, frozen.n_images, batch_size):
            x = frozen.images(start, min(start + batch_size, frozen.n_images)).to(device)
            close.add(outputs.named(original(x), len(x)), outputs.named(network(x), len(x)))
    found = close.result()
    words = closeness_words(found, "held-out calibration images")
    return {**found, "words": "\n".join([words, *far_off(found), *outputs.notes()])}
