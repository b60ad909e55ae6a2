"""Gradual pruning of a task's own weights: cubic schedule, release by magnitude in every layer, rungs and their choice.

The schedule is that of Zhu and Gupta (To prune, or not to prune, 2017, equation 1), which CPG uses from rung to rung.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decomp.schemes.cpg_owners import FREE

#: Steps between two updates, and epochs from the first update of a rung to its last.
EVERY, EPOCHS = 10, 4


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes
    ----------
    start, target : float
        Released share before and after.
    steps : int
        Steps from the begin of the rung to its last update.
    every : int
        Steps between two updates.
    """

    start: float
    target: float
    steps: int
    every: int = EVERY

    def sparsity(self, step: int) -> float:
        """``target + (start − target)(1 − step/steps)³``, the target after the last step (Zhu and Gupta, eq. 1)."""
        done = min(max(step / self.steps, 0.0), 1.0)
        return self.target + (self.start - self.target) * (1 - done) ** 3

    def is_update(self, step: int) -> bool:
        """Whether weights are released after a step, counted from 1: at every tenth, and at the last of the rung."""
        return step <= self.steps and (step % self.every == 0 or step == self.steps)


def rungs(targets: Sequence[float], steps: int) -> Iterator[Rung]:
    """The rungs of a ladder, each from the target of the one before."""
    for start, target in zip((0.0, *targets), targets):
        yield Rung(start, target, steps)


def release(weight: Tensor, owner: Tensor, task: int, sparsity: float) -> Tensor:
    """Where a task gives up weights of one layer so that a share of its allotment is free.

    Parameters
    ----------
    weight : torch.Tensor
    owner : torch.Tensor of uint8
    task : int
    sparsity : float
        Share of the weights that the task owns or that are free. With r = round(sparsity · their number), those of the
        task go whose magnitude is at most the r-th smallest among both; none for r = 0 and in a layer without any.

    Returns
    -------
    torch.Tensor of bool
        Of the weight's shape; true only where the task owns.
    """
    own = owner == task
    candidates = weight.detach().abs()[own | (owner == FREE)]
    rank = round(sparsity * candidates.numel())
    if rank == 0:
        return torch.zeros_like(own)
    cut = candidates.kthvalue(min(rank, candidates.numel())).values
    return own & (weight.detach().abs() <= cut)


def forced_share(task: int, n_tasks: int) -> float:
    """Share of its allotment that a task must release when it misses its goal at the largest width.

    Parameters
    ----------
    task : int
        From 1.
    n_tasks : int
        Tasks that the network shall hold in the end. The task may keep 1/(remaining tasks + 1) of what is free,
        rounded to a tenth.
    """
    allowed = round(1 / (max(0, n_tasks - task) + 1), 1)
    return round(1 - allowed, 1)


def choose(recorded: Mapping[float, float], least: float, forced: bool) -> float:
    """The released share of the model to keep.

    Parameters
    ----------
    recorded : mapping of float to float
        Validation accuracy by released share, of the rungs that count.
    least : float
        Lowest accuracy that meets the goal.
    forced : bool
        The goal is out of reach at the largest width: then the most compact of all rungs is kept.

    Returns
    -------
    float
        The largest share that meets the goal; where there is none, the largest of all if forced and 0 otherwise.
    """
    meeting = [share for share, accuracy in recorded.items() if accuracy >= least]
    if meeting:
        return max(meeting)
    return max(recorded, default=0.0) if forced else 0.0


def zero_released(weights: Mapping[str, Tensor], owners: Mapping[str, Tensor]) -> None:
    """Set free weights to exactly 0, in place."""
    with torch.no_grad():
        for layer, owner in owners.items():
            weights[layer].masked_fill_(owner == FREE, 0.0)
