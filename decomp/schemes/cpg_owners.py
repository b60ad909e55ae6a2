"""Owners of weights in one network of several tasks: claims, effective weights, shares, digests of frozen ones.

Every weight of the shared layers has an owner, a number in a uint8 tensor of the weight's shape: 0 is free, j is the
task that trained the weight, counted from 1. A weight with an owner below the current task is frozen for ever. The
scheme is CPG (Hung et al., Compacting, Picking and Growing for Unforgetting Continual Learning, NeurIPS 2019).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from decomp.errors import DecompError

#: Owner of a weight that no task uses.
FREE = 0
#: Owners are bytes.
MOST_TASKS = 255

Tensors = Mapping[str, Tensor]


def claim(owners: Tensors, task: int) -> dict[str, Tensor]:
    """Owners after a task took all free weights.

    Parameters
    ----------
    owners : mapping of str to torch.Tensor of uint8
    task : int
        In 1..255.
    """
    if not 1 <= task <= MOST_TASKS:
        raise DecompError("task", f"must be one of 1..{MOST_TASKS}", got=task)
    return {layer: torch.where(owner == FREE, torch.full_like(owner, task), owner) for layer, owner in owners.items()}


def old(owner: Tensor, task: int) -> Tensor:
    """Where an earlier task owns the weight: frozen for the current task, which may pick it."""
    return (owner != FREE) & (owner < task)


def effective(weight: Tensor, owner: Tensor, task: int, picked: Tensor | None = None) -> Tensor:
    """The weight as a task uses it: its own entries and the picked ones of earlier tasks; all others are 0.

    Parameters
    ----------
    weight : torch.Tensor
    owner : torch.Tensor of uint8, of the same shape
    task : int
    picked : torch.Tensor of bool, of the same shape, optional
        Read where earlier tasks own; all of these are used where it is not given.

    Returns
    -------
    torch.Tensor
        New; nothing is changed in place. Gradients reach the entries of the task alone.
    """
    used = owner == task
    shared = old(owner, task) if picked is None else old(owner, task) & picked
    weight = torch.where(used, weight, weight.detach())
    return torch.where(used | shared, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def released(owners: Tensors) -> Tensors:
    """Where weights are free, by layer."""
    return {layer: owner == FREE for layer, owner in owners.items()}


def require_zero_where_free(weights: Tensors, owners: Tensors) -> None:
    """Refuse weights that are free and not exactly 0.

    Raises
    ------
    DecompError
        Names the layer.
    """
    for layer, owner in owners.items():
        if bool((weights[layer].detach()[owner == FREE] != 0).any()):
            raise DecompError(layer, "a free weight must be exactly 0", got="another value")


def frozen_digest(weights: Tensors, owners: Tensors, task: int) -> str:
    """SHA-256 (hex) over values and owners of all weights that earlier tasks own.

    The digest does not change when layers grow by leading slices: the order of the frozen weights stays.

    Parameters
    ----------
    weights, owners : mapping of str to torch.Tensor
    task : int
        The current one.
    """
    sha = hashlib.sha256()
    for layer in sorted(owners):
        owner, weight = owners[layer].cpu().contiguous(), weights[layer].detach().cpu().contiguous()
        frozen = old(owner, task)
        sha.update(f"{layer} {int(frozen.sum())} ".encode())
        sha.update(owner[frozen].numpy().tobytes())
        sha.update(weight[frozen].numpy().tobytes())
    return sha.hexdigest()


def shares(owners: Tensors) -> dict[int, float]:
    """Share of all weights that each owner has, by its number; 0 is the free share. They add up to 1."""
    counts = torch.zeros(MOST_TASKS + 1, dtype=torch.int64)
    for owner in owners.values():
        counts += torch.bincount(owner.reshape(-1).cpu().long(), minlength=MOST_TASKS + 1)
    total = max(1, int(counts.sum()))
    return {number: count / total for number, count in enumerate(counts.tolist()) if count or number == FREE}


def sparsity(owners: Tensors, task: int) -> float:
    """Released share of a task's allotment: free weights over free ones and its own."""
    share = shares(owners)
    allotment = share[FREE] + share.get(task, 0.0)
    return share[FREE] / allotment if allotment else 0.0


def task_ratio(owners: Tensors, task: int, width: float = 1.0) -> float:
    """Weights of a task, relative to all weights at width 1.

    Parameters
    ----------
    owners : mapping of str to torch.Tensor
    task : int
        0 gives the ratio of free weights.
    width : float
        Multiplier of the parameters; the published code multiplies by the square of the channel multiplier.
    """
    return shares(owners).get(task, 0.0) * width


def shared_ratio(owners: Tensors, task: int, picked: Tensors) -> float | None:
    """Share of earlier tasks' weights that a task picks; None where there are none.

    Parameters
    ----------
    owners : mapping of str to torch.Tensor
    task : int
    picked : mapping of str to torch.Tensor of bool
    """
    n_old = sum(int(old(owner, task).sum()) for owner in owners.values())
    n_picked = sum(int((old(owner, task) & picked[layer]).sum()) for layer, owner in owners.items()) if n_old else 0
    return n_picked / n_old if n_old else None
