"""Decision of CPG after a fine-tuning: prune, grow, or keep the network as it is; with the goal and its tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass

PRUNE, GROW, COMMIT = "prune", "grow", "commit"


@dataclass(frozen=True)
class Goal:
    """Accuracy that a task shall reach on its validation images.

    Attributes
    ----------
    accuracy : float
        In 0..1.
    tolerance : float
        What the measured accuracy may miss it by; 0 is the published rule.
    """

    accuracy: float
    tolerance: float = 0.0

    @property
    def least(self) -> float:
        """Lowest accuracy that meets the goal."""
        return self.accuracy - self.tolerance


def standard_error(accuracy: float, n: int) -> float:
    """Standard error of an accuracy measured on n images, √(p(1 − p)/n) with p = (accuracy · n + 1)/(n + 2).

    The added images keep it from being 0 where all or none are right.
    """
    p = (accuracy * n + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


@dataclass(frozen=True)
class Finetuned:
    """Facts about a fine-tuned task that decide what follows.

    Attributes
    ----------
    validation, training : float
        Accuracies.
    own : float
        Share of all weights that the task owns.
    width : float
        Multiplier of the parameters.
    """

    validation: float
    training: float
    own: float
    width: float


def can_grow(width: float, step: float, max_width: float) -> bool:
    """Whether one more step stays within the largest width."""
    return width + step <= max_width + 1e-9


def decide(state: Finetuned, goal: Goal, gate: float, step: float, max_width: float) -> tuple[str, bool]:
    """What follows a fine-tuning.

    Parameters
    ----------
    state : Finetuned
    goal : Goal
    gate : float
        Training accuracy that must be exceeded for the goal to count as met; 0.95 in the published code, 0 for none.
    step, max_width : float
        Growth of the width, and the largest one.

    Returns
    -------
    action : {'prune', 'grow', 'commit'}
        A task without weights of its own has nothing to prune. Where the goal is missed the network grows as long as
        the next width is allowed, and no longer.
    forced : bool
        The goal is missed and the network cannot grow.
    """
    met = state.validation >= goal.least
    passed = met and (gate <= 0 or state.training > gate)
    if not passed and can_grow(state.width, step, max_width):
        return GROW, False
    return (COMMIT if state.own == 0 else PRUNE), not met
