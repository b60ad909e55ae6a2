"""State in which a task begins to learn: earlier weights leading, free ones claimed, new head, fresh picks."""

from __future__ import annotations

import torch
from torch import Tensor

from decomp import seeds
from decomp.schemes import cpg_owners, cpg_picks
from decomp.schemes.cpg_growth import Family, grown, initial_weight
from decomp.schemes.cpg_module import TaskState

#: Deviation of a new head's weights, as in the published code.
HEAD_DEVIATION = 0.01


def start(
    family: Family, before: TaskState, task: int, width: float, n_classes: int, *, seed: int, reinitialise: bool = False
) -> TaskState:
    """The state before the fine-tuning of a task, at a width.

    Parameters
    ----------
    family : Family
    before : TaskState
        After the task before; of the first task, the base network without owners.
    task : int
    width : float
        At least that of `before`.
    n_classes : int
    seed : int
        Of the run.
    reinitialise : bool
        Draw new values for weights that earlier tasks released, which are 0 otherwise.

    Returns
    -------
    TaskState
        A copy; every free weight is claimed.
    """
    template = family.build(width, n_classes).state_dict()
    weights: dict[str, Tensor] = {}
    owners: dict[str, Tensor] = {}
    for layer in family.layers:
        shape = template[f"{layer}.weight"].shape
        fresh = initial_weight(shape, seeds.generator(seed, "tasks", task, "weights", f"{width:g}", layer))
        owners[layer] = grown(before.owners[layer], torch.zeros(shape, dtype=torch.uint8))
        weights[layer] = grown(before.weights[layer], fresh)
        if reinitialise and task > 1:
            weights[layer] = torch.where(owners[layer] == cpg_owners.FREE, fresh, weights[layer])
    owners = cpg_owners.claim(owners, task)
    shared = {f"{layer}.weight" for layer in family.layers}
    private = {
        name: _own(name, family, before.private, value.clone(), seeds.generator(seed, "tasks", task, "head"))
        for name, value in template.items()
        if name not in shared
    }
    return TaskState(width, weights, owners, cpg_picks.fresh(owners) if task > 1 else {}, private)


def alone(
    family: Family, base: TaskState, n_classes: int, *, seed: int, redrawn: int | None = None
) -> TaskState:  # fmt: skip
    """The base network as one task's own, with a new head.

    Parameters
    ----------
    family : Family
    base : TaskState
    n_classes : int
    seed : int
        Of the run.
    redrawn : int, optional
        Draw new weights for the task of this number; those of the base where it is not given.
    """
    state = start(family, base, 1, 1.0, n_classes, seed=seed)
    if redrawn is not None:
        for layer, weight in state.weights.items():
            generator = seeds.generator(seed, "tasks", redrawn, "independent", layer)
            state.weights[layer] = initial_weight(weight.shape, generator)
    return state


def _own(
    name: str, family: Family, before: dict[str, Tensor], fresh: Tensor, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """One entry of the task's own: a new head, or the values of the task before in the leading slice."""
    if name == f"{family.head}.weight":
        return torch.randn(fresh.shape, generator=generator) * HEAD_DEVIATION
    if name == f"{family.head}.bias":
        return torch.zeros_like(fresh)
    return grown(before[name], fresh)
