"""Decisions that some timed steps make before a training: its precision, and whether an original answers only once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..console.reporter import Reporter
from .budget import Budget, step_time
from .precision import choose_precision
from .recipe import Recipe
from .tasks import TrainingTask
from .unlabelled import UnlabelledTask

#: Steps that are timed after a first one.
STEPS = 8


def precision_for(
    asked: str, network: nn.Module, recipe: Recipe, steps: Mapping[str, Any], time_limit: Budget | None,
    begun: Mapping[str, Any], reporter: Reporter,
) -> str:  # fmt: skip
    """The precision of a training, announced where it was measured or asked for; see :func:`choose_precision`.

    Parameters
    ----------
    asked : {'auto', 'float32', 'bfloat16'}
    network : torch.nn.Module
        Not changed.
    recipe : Recipe
    steps : mapping
        ``n_images``, ``batches``, ``loss``, ``device`` and ``n_parts`` of
        :func:`decomp.pipelines.training.budget.step_time`.
    time_limit : Budget, optional
        Where there is none, nothing is measured: the result then follows from the options alone.
    begun : mapping
        Identity of the interrupted training that goes on.
    reporter : Reporter
    """

    def seconds(name: str) -> float:
        return step_time(network, recipe, most=STEPS, precision=name, **steps)

    measure = None if time_limit is None else seconds
    chosen = choose_precision(asked, steps["device"], begun.get("computed_in"), measure)
    if words := chosen.words():
        reporter.step(words)
    return chosen.name


def original_answers_once(
    task: TrainingTask, original: nn.Module | None, network: nn.Module, recipe: Recipe, steps: Mapping[str, Any],
    time_limit: Budget | None, begun: Mapping[str, Any], reporter: Reporter,
) -> bool:  # fmt: skip
    """Let the original answer once for every image, where that is less work and its answers fit in memory.

    It is less work where every image is trained on more than once.

    Parameters
    ----------
    task : TrainingTask
    original : torch.nn.Module, optional
    network, recipe, time_limit, begun, reporter
        As for :func:`precision_for`.
    steps : mapping
        With the ``precision`` as well.

    Returns
    -------
    bool
        Whether the answers are kept.
    """
    if original is None or not isinstance(task, UnlabelledTask) or not task.keeps_targets:
        return False
    kept = begun.get("targets_kept")
    if kept is None and time_limit is None:
        kept = recipe.epochs > 1
    elif kept is None and time_limit is not None:
        n_steps = len(task.train) // recipe.batch_size
        kept = time_limit.has(n_steps * step_time(network, recipe, most=STEPS, **steps))
    if kept:
        task.keep_targets(original, steps["device"], reporter)
    return bool(kept)
