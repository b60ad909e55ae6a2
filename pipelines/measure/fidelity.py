"""Fidelity: difference between the outputs of two networks on held-out calibration images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from decomp.execution.outputs import as_tensor, output_divergence

from ...data.formats.frozen_file import FrozenFile


def compare(
    original: nn.Module, network: nn.Module, frozen: FrozenFile, first: int, batch_size: int, device: torch.device
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

    Returns
    -------
    dict
        ``images``, their number; ``relative``, the squared difference of the outputs over the variance of the
        original's; for outputs of shape (N, classes) also ``kl``, the mean Kullback–Leibler divergence in nats from
        the original's class probabilities, and ``agreement``, the share of images with the same top class; ``words``,
        a summary line.
    """
    n_images, n_agree, difference, variance, divergence = 0, 0, 0.0, 0.0, 0.0
    classes = False
    with torch.no_grad():
        for start in range(first, frozen.n_images, batch_size):
            x = frozen.images(start, min(start + batch_size, frozen.n_images)).to(device)
            expected, got = as_tensor(original(x)).double(), as_tensor(network(x)).double()
            n_images += len(x)
            difference += (got - expected).square().sum().item()
            variance += (expected - expected.mean(dim=0)).square().sum().item()
            classes = expected.dim() == 2
            if classes:
                divergence += output_divergence(expected, got).sum().item()
                n_agree += int((expected.argmax(1) == got.argmax(1)).sum())
    result: dict[str, Any] = {"images": n_images, "relative": difference / max(variance, 1e-300)}
    words = f"on {n_images} held-out calibration images: outputs differ by {result['relative']:.2%} of their variance"
    if classes:
        result.update(kl=divergence / n_images, agreement=n_agree / n_images)
        words += f", KL divergence {result['kl']:.4f}, same top class on {result['agreement']:.2%}"
    return {**result, "words": words}
