"""Learning rate of a training without labels of few images, by a few steps at each of several rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from decomp.errors import NumericalError

from ..console.reporter import Reporter
from ..console.words import counted
from ..distributed.process_group import from_first
from .budget import Budget, step_time
from .loop import Validate, fit
from .recipe import Recipe

#: Rates that are tried, as shares of the one that was asked for.
SHARES = (1.0, 0.2, 0.04)
#: Steps at each rate, fewer where all would take more than one part in so many of the time. The rate rises during a
#: quarter of them, as it does at the beginning of a training.
STEPS, LEAST_STEPS, TIME_SHARE, WARMUP = 8, 3, 10, 0.25


@dataclass(frozen=True)
class TriedRates:
    """Change of the outputs on held-out images before a training, and after some steps at each rate.

    Attributes
    ----------
    before : float
    after : dict of float to float
        By rate.
    n_steps : int
    """

    before: float
    after: Mapping[float, float]
    n_steps: int = STEPS

    @property
    def best(self) -> float:
        """The rate of the smallest change; of equal ones the lower rate."""
        return min(sorted(self.after), key=lambda rate: self.after[rate])

    def words(self) -> str:
        """One line: the rate that is taken, and why."""
        tried = ", ".join(f"{change:.3g} at {rate:g}" for rate, change in self.after.items())
        return (
            f"learning rate {self.best:g}: after {counted(self.n_steps, 'step')} the change on held-out images is "
            f"{tried}, and {self.before:.3g} before them"
        )


def tried_rate(
    network: nn.Module, recipe: Recipe, steps: Mapping[str, Any], validate: Validate, time_limit: Budget | None,
    begun: Mapping[str, Any], reporter: Reporter,
) -> float:  # fmt: skip
    """The rate, up to that of the recipe, that brings a network closest to the original in its first steps.

    With few images a rate that is too high raises the change on held-out images at once, and much of the time is over
    before it has come down again.

    Parameters
    ----------
    network : torch.nn.Module
        Not changed.
    recipe : Recipe
    steps : mapping
        ``n_images``, ``batches``, ``loss``, ``device``, ``n_parts`` and ``precision`` of
        :func:`decomp.pipelines.training.loop.fit`.
    validate : callable
        Its ``score`` is the change with a minus in front.
    time_limit : Budget, optional
        Of the training.
    begun : mapping
        Identity of the interrupted training that goes on, whose rate is taken.
    reporter : Reporter
    """
    if "tried_rate" in begun:
        return float(begun["tried_rate"])
    n_steps = _n_steps(network, recipe, steps, time_limit)
    n_images = min(steps["n_images"], n_steps * recipe.batch_size)
    short = replace(recipe, epochs=1, schedule="constant", warmup_epochs=WARMUP, milestones=())

    def change(rate: float) -> float:
        copied = copy.deepcopy(network)
        try:
            fit(copied, replace(short, learning_rate=rate), stage="rate", **{**steps, "n_images": n_images})
        except NumericalError:
            return math.inf
        return -validate(copied)["score"]

    before = -validate(copy.deepcopy(network).eval())["score"]
    rates = [share * recipe.learning_rate for share in SHARES]
    found = TriedRates(before, {rate: change(rate) for rate in rates}, n_steps)
    reporter.step(found.words())
    return from_first(lambda: found.best)


def _n_steps(network: nn.Module, recipe: Recipe, steps: Mapping[str, Any], time_limit: Budget | None) -> int:
    """Steps at each rate that take no more of the time than their share, or the fewest."""
    if time_limit is None:
        return STEPS
    seconds = TIME_SHARE * len(SHARES) * step_time(network, recipe, most=LEAST_STEPS, **steps)
    return next((n for n in range(STEPS, LEAST_STEPS, -1) if time_limit.has(n * seconds)), LEAST_STEPS)
