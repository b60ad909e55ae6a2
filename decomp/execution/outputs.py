"""Outputs of a network as one tensor, and the change of an output: KL divergence or relative squared error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decomp.errors import UsageError


def as_tensor(output: Any, name: str = "model") -> Tensor:
    """A network's output as one tensor.

    Parameters
    ----------
    output : torch.Tensor, or dict, list or tuple of such, nested as they may be
        The first axis of each runs over the images.
    name : str
        For messages.

    Returns
    -------
    torch.Tensor
        A single tensor as it is. Several are concatenated, shape (N, 1, D), each entry divided by the square root
        of its tensor's size, so that all tensors have the same weight.

    Raises
    ------
    UsageError
        The output is not made of tensors, or their first axes differ.
    """
    if isinstance(output, Tensor):
        return output
    parts = list(_tensors(output, name))
    if not parts or len({len(part) for part in parts}) != 1:
        raise UsageError(name, "must return tensors whose first axis runs over the images", got=type(output).__name__)
    flat = [part.flatten(1) / max(part[0].numel(), 1) ** 0.5 for part in parts]
    return torch.cat(flat, dim=1)[:, None]


def _tensors(output: Any, name: str) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.dim() > 0:
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part, name)
    else:
        raise UsageError(name, "must return tensors, or dicts or lists of tensors", got=type(output).__name__)


def output_divergence(wanted: Tensor, got: Tensor) -> Tensor:
    """Change of a network's output, one number per image.

    Parameters
    ----------
    wanted, got : torch.Tensor
        Of shape (N, classes): Kullback–Leibler divergence in nats of softmax(got) from softmax(wanted). Of any
        other shape: squared difference over the mean squared deviation of ``wanted``.

    Returns
    -------
    torch.Tensor, shape (N,), float64
    """
    wanted, got = wanted.double(), got.double()
    if wanted.dim() == 2:
        log_wanted, log_got = F.log_softmax(wanted, dim=1), F.log_softmax(got, dim=1)
        return (log_wanted.exp() * (log_wanted - log_got)).sum(dim=1)
    scale = (wanted - wanted.mean(dim=0)).square().mean().clamp_min(1e-300)
    return (got - wanted).flatten(1).square().mean(dim=1) / scale
