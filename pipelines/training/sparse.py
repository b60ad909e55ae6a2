"""Sparse training of network slimming as hooks of the training loop, and the effect that its strength can have."""

from __future__ import annotations

import math
from typing import Any

from decomp.schemes.sparsity import START, ScalePenalty

from ..console.reporter import Reporter
from ..console.words import counted
from .hooks import Hooks
from .loop import Training
from .recipe import BIASES, Recipe
from .schedules import learning_rate_at

#: Smaller scale factors are counted as near 0.
NEAR_ZERO = 0.01
#: Budget that is enough to cut most channels of small networks without loss.
ENOUGH = 5.0


class SparseTraining:
    """Calls of a scale penalty from the training loop.

    Parameters
    ----------
    penalty : decomp.schemes.sparsity.ScalePenalty
    proximal : bool
        The proximal step in place of the sign rule.
    """

    def __init__(self, penalty: ScalePenalty, proximal: bool) -> None:
        self.penalty, self.proximal = penalty, proximal

    def hooks(self) -> Hooks:
        """The hooks; they remember nothing from one step to the next."""
        if self.proximal:
            return Hooks(after_step=self._shrink)
        return Hooks(after_backward=lambda training: self.penalty.add_gradients())

    def _shrink(self, training: Training) -> None:
        group = training.group(BIASES)
        self.penalty.shrink(group["lr"] / (1 - group["momentum"]))

    def announce(self, recipe: Recipe, n_images: int, reporter: Reporter) -> None:
        """Report what is penalised and by how much it can fall, with a warning where that is too little."""
        strength, budget = self.penalty.strength, shrink_budget(self.penalty.strength, recipe, n_images)
        n_norms = counted(len(self.penalty.factors), "batch normalisation")
        rule = "proximal step" if self.proximal else "sign rule"
        reporter.step(
            f"sparsity {strength:g} ({rule}) on {self.penalty.n_channels:,} scale factors of {n_norms}, from {START:g} "
            f"on: those that the loss does not hold fall by up to {budget:.3g}",
            sparsity=strength, budget=budget,
        )  # fmt: skip
        for path, reason in self.penalty.left_out.items():
            reporter.detail(f"not penalised: {path} {reason}")
        if budget < 1:
            better = round_up(strength * ENOUGH / budget)
            reporter.warn(
                f"sparsity {strength:g} is too small for this training to tell channels apart: scale factors fall by "
                f"{budget:.2g} at most; {better:g} would let them fall by {ENOUGH:g}, and so would more epochs"
            )
        rate, momentum = recipe.learning_rate, recipe.rules()[BIASES].momentum
        if not self.proximal and (swing := strength * rate / (1 - momentum)) > START:
            reporter.warn(
                f"sparsity {strength:g} is too large for this learning rate: scale factors swing around 0 by up to "
                f"{swing:.2g}, more than where they start; take a smaller one, or a soft threshold (--proximal)"
            )

    def facts(self) -> dict[str, Any]:
        """Counts of the penalised scale factors: ``channels``, ``near_zero`` (below 0.01) and ``zero``."""
        values = self.penalty.values().abs()
        return {
            "channels": len(values), "near_zero": int((values < NEAR_ZERO).sum()), "zero": int((values == 0).sum()),
        }  # fmt: skip


def shrink_budget(strength: float, recipe: Recipe, n_images: int) -> float:
    """The distance that λ alone moves a scale factor during a training: λ·Ση / (1 − μ), over the rates η of all steps.

    Parameters
    ----------
    strength : float
        λ.
    recipe : Recipe
        Of SGD with momentum μ.
    n_images : int
        Training images.
    """
    steps = max(1, n_images // recipe.batch_size)
    rule = recipe.rules()[BIASES]
    total = math.fsum(learning_rate_at(rule, step, steps) for step in range(recipe.epochs * steps))
    return strength * total / (1 - rule.momentum)


def round_up(value: float) -> float:
    """The next number with one digit."""
    digit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / digit - 1e-9) * digit
