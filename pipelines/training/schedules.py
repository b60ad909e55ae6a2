"""Learning-rate schedules with linear warm-up."""

from __future__ import annotations

import math

from .recipe import UpdateRule


def learning_rate_at(rule: UpdateRule, step: float, steps_per_epoch: int) -> float:
    """Learning rate of a step.

    With ``W`` warm-up steps of ``T`` in all and the peak ``r``, the rate is ``r (step + 1) / W`` for ``step < W``.
    Afterwards it is

    - 'cosine': ``r/2 (1 + cos(pi (step - W) / (T - W)))``, which falls to 0 at the end of the last epoch;
    - 'constant': ``r``;
    - 'milestones': ``r`` times the factors (``gamma``) of all milestones that are not after the step's epoch.

    A warm-up takes at most half the steps.

    Parameters
    ----------
    rule : UpdateRule
    step : float
        Counted from 0 over the whole training.
    steps_per_epoch : int
    """
    total = rule.epochs * steps_per_epoch
    warmup = min(round(rule.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return rule.learning_rate * (step + 1) / warmup
    if rule.schedule == "cosine":
        return rule.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    epoch = step // steps_per_epoch
    return rule.learning_rate * math.prod(
        factor for milestone, factor in zip(rule.milestones, rule.gammas) if milestone <= epoch
    )
