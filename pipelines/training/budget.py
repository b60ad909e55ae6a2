"""Budget in minutes: the number of epochs that fit into it, from a short trial, and the end when it is used up."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp import seeds

from ..console.reporter import Reporter
from ..console.words import counted
from ..distributed.process_group import from_first, gathered
from ..measure.devices import to_device
from . import checkpoints
from .gradients import Loss, add_gradients
from .hooks import Hooks
from .loop import Batches, Training, Validate
from .recipe import Recipe

#: Steps of the trial after a first one, which takes longer; fewer where they take as long as TRIAL_SECONDS.
TRIAL_STEPS, TRIAL_SECONDS = 40, 20.0
#: Share of the budget that is planned; machines have slower minutes.
PLANNED = 0.9
#: Where fewer epochs than this would fit, an epoch is a part of the images, so that none takes longer than the budget
#: and the best of several is kept.
LEAST_EPOCHS = 4
#: States that are written after an epoch: the last network, the best one, the checkpoint with the optimizer's.
STATES = 5


@dataclass(frozen=True)
class EpochTime:
    """Seconds of an epoch.

    Attributes
    ----------
    steps, n_steps
        Seconds of all steps, and their number.
    rest
        Seconds of the validation and the files.
    """

    steps: float
    n_steps: int
    rest: float

    def of(self, slices: int) -> float:
        """Seconds of an epoch that is one of so many parts of the images."""
        return self.steps / slices + self.rest

    def slices(self, seconds: float) -> int:
        """Number of parts of the images such that one fits into so many seconds; a part has at least one step."""
        if seconds <= self.rest:
            return self.n_steps
        return min(self.n_steps, max(1, -int(-self.steps // (seconds - self.rest))))


def epoch_time(
    module: nn.Module, recipe: Recipe, *, n_images: int, batches: Batches, loss: Loss, validate: Validate,
    device: torch.device, n_parts: int = 1, precision: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> EpochTime:  # fmt: skip
    """The time that an epoch of a training takes, by some of its steps and one validation.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    recipe, n_images, batches, loss, validate, device, n_parts, precision
        As for :func:`decomp.pipelines.training.loop.fit`.
    clock : callable
        The time in seconds.
    """
    n_steps = max(1, n_images // recipe.batch_size)
    step = step_time(
        module, recipe, n_images=n_images, batches=batches, loss=loss, device=device, n_parts=n_parts,
        precision=precision, clock=clock,
    )  # fmt: skip
    copied = copy.deepcopy(module).to(device).to(memory_format=torch.channels_last).eval()
    started = clock()
    validate(copied)
    validation, started = clock() - started, clock()
    torch.save(copied.state_dict(), io.BytesIO())
    return EpochTime(n_steps * step, n_steps, validation + STATES * (clock() - started))


def step_time(
    module: nn.Module, recipe: Recipe, *, n_images: int, batches: Batches, loss: Loss, device: torch.device,
    n_parts: int = 1, precision: str | None = None, most: int = TRIAL_STEPS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:  # fmt: skip
    """Seconds of a step of a training, without the optimizer's share, by some steps after a first one.

    Parameters
    ----------
    module, recipe, n_images, batches, loss, device, n_parts, precision, clock
        As for :func:`epoch_time`.
    most : int
        Steps that are timed; fewer where they take long.
    """
    copied = copy.deepcopy(module).to(device).to(memory_format=torch.channels_last)
    size = min(recipe.batch_size, n_images)
    n_steps = max(1, n_images // recipe.batch_size)
    generator = seeds.generator(recipe.seed, "budget", "order")
    order = torch.randperm(n_images, generator=generator)[: (1 + min(n_steps, most)) * size]
    done, started, last = 0, clock(), clock()
    copied.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for images, labels in batches(order, size, seeds.derive_seed(recipe.seed, "budget", "augment")):
            labels = None if labels is None else labels.to(device)
            # Reading the loss waits for a GPU.
            images = to_device(images, device)
            float(add_gradients(copied, loss, images, labels, device, n_parts=n_parts, precision=precision))
            last = clock()
            if done == 0 and len(order) > size:
                started = last  # without the first step
            done += 1
            if last - started > TRIAL_SECONDS:
                break
    return (last - started) / max(done - (len(order) > size), 1)


class Budget:
    """Number of epochs for a time, and the hook that plans fewer of them when they take longer.

    Parameters
    ----------
    minutes : float
    began : float
        Reading of ``time.perf_counter`` from which the time counts.

    Notes
    -----
    Before each epoch as many as fit at the pace of the last one are planned, never more than at the beginning. The
    schedule goes on from where it is and ends with the last planned epoch, so that the learning rate reaches its end
    on a machine that becomes slower too.
    """

    def __init__(self, minutes: float, began: float) -> None:
        self.seconds, self.began = 60 * minutes, began
        self.spent, self.slices = 0.0, 1
        # The epoch before which epochs were last planned, the share of the schedule there, and the epochs in all.
        self.planned: tuple[int, float, int] | None = None

    def plan(self, recipe: Recipe, checkpoint: Path, start_over: str, measure: Callable[[], EpochTime]) -> Recipe:
        """The recipe with the number of epochs that fit, at least one; `slices` is then the parts of the images.

        A checkpoint of an interrupted training decides both, so that the learning rates are the same.

        Parameters
        ----------
        recipe : Recipe
        checkpoint : Path
        start_over : str
            The way to train anew, for messages.
        measure : callable
            Measures the time of an epoch.
        """
        if checkpoint.exists():
            identity = checkpoints.read(checkpoint, start_over)["identity"]
            self.slices = int(identity.get("slices", 1))
            return replace(recipe, epochs=int(identity["epochs"]))
        found = max(gathered(measure()), key=lambda time: time.of(1))  # the slowest process decides
        self.spent = from_first(lambda: time.perf_counter() - self.began)
        left = PLANNED * (self.seconds - self.spent)
        self.slices = found.slices(left / LEAST_EPOCHS)
        return replace(recipe, epochs=max(1, int(left / max(found.of(self.slices), 1e-3))))

    def has(self, seconds: float) -> bool:
        """Whether so many seconds, of the slowest process, are less than what would be planned now."""
        longest = max(gathered(seconds))
        return from_first(lambda: longest < PLANNED * (self.seconds - (time.perf_counter() - self.began)))

    def words(self, recipe: Recipe) -> str:
        """What is planned, in words."""
        parts = f", each with one part in {self.slices} of the images," if self.slices > 1 else ""
        return f"{counted(recipe.epochs, 'epoch')}{parts} planned for {self.seconds / 60:g} minutes"

    def hook(self, reporter: Reporter) -> Hooks:
        """Plans before each epoch; ends the training when the time is over. The first epoch always runs."""

        def before_epoch(training: Training) -> None:
            used = self.spent + sum(line["seconds"] for line in training.history)
            left = from_first(lambda: self.seconds - used)
            if training.epoch and left <= 0:
                training.stopped = True
                reporter.step(f"the time is over after {training.epoch} of {training.n_epochs} planned epochs")
            elif training.epoch:
                each = from_first(lambda: max(training.history[-1]["seconds"], 1e-3))
                if self._plan_again(training, max(1, int(left / each))):
                    n = counted(training.n_epochs, "epoch")
                    reporter.step(f"{n} in all: at the pace of the last one no more fit into the time")

        return Hooks(
            before_epoch=before_epoch, state_dict=self._state, load_state_dict=self._set_state, name="budget"
        )  # fmt: skip

    def _plan_again(self, training: Training, fit: int) -> bool:
        """Plan so many more epochs where they are fewer than planned, and say at which share of the schedule it is.

        Returns
        -------
        bool
            They are fewer.
        """
        begun, share, n_epochs = self.planned or (0, 0.0, training.recipe.epochs)
        share += (1 - share) * (training.epoch - begun) / (n_epochs - begun)
        fewer = training.epoch + fit < n_epochs
        if fewer:
            self.planned = (training.epoch, share, training.epoch + fit)
        if self.planned is not None:
            training.progress, training.n_epochs = share, self.planned[2]
        return fewer

    def _state(self) -> dict[str, Any]:
        return {"spent": self.spent, "planned": None if self.planned is None else list(self.planned)}

    def _set_state(self, state: dict[str, Any]) -> None:
        self.spent, planned = state["spent"], state["planned"]
        self.planned = None if planned is None else (planned[0], planned[1], planned[2])
