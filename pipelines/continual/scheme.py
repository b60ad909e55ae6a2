"""Hooks of the training loop for CPG: decay by hand, gradual release, early end, and the guard at every epoch."""

from __future__ import annotations

from typing import Any

import torch

from decomp.schemes import cpg_ladder, cpg_owners
from decomp.schemes.cpg_module import TaskModule

from ..training.loop import Training
from .guard import Guard


class CpgScheme:
    """One phase of CPG, as hooks of the training loop.

    Weight decay is added to gradients here: the optimizer's own would change every weight, and those of earlier tasks
    too.

    Parameters
    ----------
    module : TaskModule
    guard : Guard
    weight_decay : float
        Of the shared weights that the task owns.
    rung : decomp.schemes.cpg_ladder.Rung, optional
        Releases weights on the way.
    patience : int, optional
        Epochs without a better validation after which the phase ends.
    """

    def __init__(
        self, module: TaskModule, guard: Guard, weight_decay: float, rung: cpg_ladder.Rung | None = None,
        patience: int | None = None,
    ) -> None:  # fmt: skip
        self.module, self.guard, self.weight_decay = module, guard, weight_decay
        self.rung, self.patience, self.step = rung, patience, 0

    def before_epoch(self, training: Training) -> None:
        self.guard.check_module(self.module)
        if self.patience is not None and training.epoch - (training.best_epoch or 0) >= self.patience:
            training.stopped = True

    @torch.no_grad()
    def after_backward(self, training: Training) -> None:
        owners, picks = self.module.owners, self.module.pick_values
        for layer, weight in self.module.weights.items():
            if weight.grad is not None:
                weight.grad.add_(weight, alpha=self.weight_decay)
                weight.grad.masked_fill_(owners[layer] != self.module.task, 0.0)
        for layer, values in picks.items():
            if values.grad is not None:
                values.grad.masked_fill_(~cpg_owners.old(owners[layer], self.module.task), 0.0)

    @torch.no_grad()
    def after_step(self, training: Training) -> None:
        self.step += 1
        owners, weights, task = self.module.owners, self.module.weights, self.module.task
        if self.rung is not None and self.rung.is_update(self.step):
            share = self.rung.sparsity(self.step)
            for layer, owner in owners.items():
                gone = cpg_ladder.release(weights[layer], owner, task, share)
                owner.masked_fill_(gone, cpg_owners.FREE)
                for buffer in training.optimizer_buffers(weights[layer]):
                    buffer.masked_fill_(gone, 0.0)
        if self.rung is not None:
            cpg_ladder.zero_released(weights, owners)

    def after_epoch(self, training: Training) -> None:
        self.guard.check_module(self.module)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
