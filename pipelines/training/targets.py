"""Outputs of an original that stay in memory: computed once for every image instead of once in every epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from decomp.execution.output_change import Outputs


def entries(outputs: Outputs) -> int:
    """Numbers that all outputs of one image have together."""
    return sum(math.prod(entry.shape) for entry in outputs.each)


def as_rows(values: Mapping[str, Tensor], outputs: Outputs) -> Tensor:
    """All outputs of each image as one row.

    Parameters
    ----------
    values : mapping of str to torch.Tensor, shape (N, ...)
    outputs : Outputs

    Returns
    -------
    torch.Tensor of float32, shape (N, D)
    """
    return torch.cat([values[entry.name].float().reshape(len(values[entry.name]), -1) for entry in outputs.each], 1)


def from_rows(rows: Tensor, outputs: Outputs) -> dict[str, Tensor]:
    """The outputs by name, out of :func:`as_rows`."""
    return dict(_parts(rows, outputs))


def _parts(rows: Tensor, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    sizes = [math.prod(entry.shape) for entry in outputs.each]
    for entry, part in zip(outputs.each, rows.split(sizes, 1)):
        yield entry.name, part.reshape(len(rows), *entry.shape)
