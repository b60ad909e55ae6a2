"""Picks of earlier tasks' weights: a real value for each weight, cut by a threshold that passes gradients straight on.

Hung et al. 2019, section 3.2, after Piggyback (Mallya et al., ECCV 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from decomp.schemes.cpg_owners import old

#: Above it a weight is picked.
THRESHOLD = 0.005
#: Value at which all picks begin: every weight of earlier tasks is in use.
INITIAL = 0.01


class _Threshold(torch.autograd.Function):
    """1 above the threshold and 0 elsewhere; the gradient passes through unchanged."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return (values > THRESHOLD).to(values.dtype)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def binary(values: Tensor) -> Tensor:
    """The real picks as 0 and 1, in their type, with a straight-through gradient."""
    result: Tensor = _Threshold.apply(values)
    return result


def picked(values: Tensor) -> Tensor:
    """The real picks as booleans, without a gradient."""
    return values.detach() > THRESHOLD


def fresh(owners: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Picks before any training, of the owners' shapes and devices."""
    return {
        layer: torch.full(owner.shape, INITIAL, device=owner.device) for layer, owner in owners.items()
    }  # fmt: skip


def effective_in_training(weight: Tensor, owner: Tensor, task: int, values: Tensor | None) -> Tensor:
    """The weight as a task uses it, with the values of :func:`decomp.schemes.cpg_owners.effective` and gradients.

    Parameters
    ----------
    weight, values : torch.Tensor
        The gradient of `weight` is 0 wherever the task does not own, that of `values` wherever no earlier task does.
    owner : torch.Tensor of uint8
    task : int
        The first task has no `values`.
    """
    zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
    shared = zero
    if values is not None:
        shared = torch.where(old(owner, task), weight.detach() * binary(values), zero)
    return torch.where(owner == task, weight, shared)
