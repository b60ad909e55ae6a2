"""Budget in minutes: the number of epochs that fit into it, from a short trial, and the end when it is used up."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from decomp import seeds

from ..console.reporter import Reporter
from ..distributed.process_group import from_first, gathered
from ..measure.devices import autocast, to_device
from . import checkpoints
from .hooks import Hooks
from .loop import Batches, Loss, Training, Validate
from .recipe import Recipe

#: Steps of the trial after a first one, which takes longer; fewer where they take as long as TRIAL_SECONDS.
TRIAL_STEPS, TRIAL_SECONDS = 10, 20.0
#: Share of the budget that is planned; machines have slower minutes.
PLANNED = 0.9
#: States that are written after an epoch: the last network, the best one, the checkpoint with the optimizer's.
STATES = 5


def epoch_seconds(
    module: nn.Module, recipe: Recipe, *, n_images: int, batches: Batches, loss: Loss, validate: Validate,
    device: torch.device, clock: Callable[[], float] = time.perf_counter,
) -> float:  # fmt: skip
    """Seconds that an epoch of a training takes, by some of its steps and one validation.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    recipe, n_images, batches, loss, validate, device
        As for :func:`decomp.pipelines.training.loop.fit`.
    clock : callable
        The time in seconds.
    """
    copied = copy.deepcopy(module).to(device).to(memory_format=torch.channels_last)
    size = min(recipe.batch_size, n_images)
    n_steps = max(1, n_images // recipe.batch_size)
    generator = seeds.generator(recipe.seed, "budget", "order")
    order = torch.randperm(n_images, generator=generator)[: (1 + min(n_steps, TRIAL_STEPS)) * size]
    done, started, last = 0, clock(), clock()
    copied.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for images, labels in batches(order, size, seeds.derive_seed(recipe.seed, "budget", "augment")):
            with autocast(device):
                value = loss(copied, to_device(images, device), None if labels is None else labels.to(device))
            value.backward()
            float(value.detach())  # waits for a GPU
            last = clock()
            if done == 0 and len(order) > size:
                started = last  # without the first step
            done += 1
            if last - started > TRIAL_SECONDS:
                break
    step = (last - started) / max(done - (len(order) > size), 1)
    copied.eval()
    started = clock()
    validate(copied)
    validation, started = clock() - started, clock()
    torch.save(copied.state_dict(), io.BytesIO())
    return n_steps * step + validation + STATES * (clock() - started)


class Budget:
    """Number of epochs for a time, and the hook that ends a training which takes longer.

    Parameters
    ----------
    minutes : float
    began : float
        Reading of ``time.perf_counter`` from which the time counts.
    """

    def __init__(self, minutes: float, began: float) -> None:
        self.seconds, self.began = 60 * minutes, began
        self.spent = 0.0

    def plan(self, recipe: Recipe, checkpoint: Path, start_over: str, seconds: Callable[[], float]) -> Recipe:
        """The recipe with the number of epochs that fit, at least one.

        A checkpoint of an interrupted training decides it, so that the learning rates are the same.

        Parameters
        ----------
        recipe : Recipe
        checkpoint : Path
        start_over : str
            The way to train anew, for messages.
        seconds : callable
            Measures how long an epoch takes.
        """
        if checkpoint.exists():
            epochs = int(checkpoints.read(checkpoint, start_over)["identity"]["epochs"])
        else:
            each = max(*gathered(seconds()), 1e-3)  # the slowest process decides
            self.spent = from_first(lambda: time.perf_counter() - self.began)
            epochs = max(1, int(PLANNED * (self.seconds - self.spent) / each))
        return replace(recipe, epochs=epochs)

    def hook(self, reporter: Reporter) -> Hooks:
        """Ends the training before an epoch that would begin when the time is over; the first one always runs."""

        def before_epoch(training: Training) -> None:
            used = self.spent + sum(line["seconds"] for line in training.history)
            if from_first(lambda: bool(training.epoch and used >= self.seconds)):
                training.stopped = True
                reporter.step(f"the time is over after {training.epoch} of {training.recipe.epochs} planned epochs")

        return Hooks(before_epoch=before_epoch)
