"""Training loop of the project: seeded epochs with the optimizers of a recipe, resumable after any of them.

Uses differ in what they pass in: a loss callable, a validation callable and hooks. Nothing here knows where images or
networks come from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp import seeds
from decomp.errors import NumericalError, check_choice

from ..console.progress import Progress
from ..console.reporter import Reporter
from ..distributed.process_group import count, number
from ..distributed.trained_module import own_places, shared_training
from ..measure.devices import pick_device, to_device, usual_precision
from . import checkpoints
from .ahead import ahead
from .epochs import EpochLosses, divergence, epoch_words
from .gradients import Loss, add_gradients
from .hooks import Hooks, call_hooks, last_change, state_names
from .optimizers import Optimizers, buffers_of, group_parameters, make_optimizers, named_groups, set_learning_rates
from .recipe import BIASES, WEIGHTS, Recipe

Batches = Callable[..., Iterable[tuple[torch.Tensor, torch.Tensor | None]]]
Validate = Callable[[nn.Module], Mapping[str, float]]


@dataclass
class Training:
    """State of a training; hooks get it and may change the module and the optimizers in place.

    Attributes
    ----------
    module : torch.nn.Module
    optimizers : dict of str to torch.optim.Optimizer
        By kind; see :mod:`decomp.pipelines.training.optimizers`.
    recipe : Recipe
    epoch : int
        Epochs that are finished.
    history : list of dict
        One line per epoch: ``epoch``, ``loss`` (mean over the epoch, None for epoch 0), ``learning_rate`` (of its last
        step), ``seconds``, whatever ``validate`` returned, and ``learning_rate_NAME`` for groups of the recipe.
    best_epoch, best_score, best_state
        Of the highest ``score`` so far; epoch and state are None where none is kept.
    first_loss : float or None
        Loss of the very first step.
    stopped : bool
        Set by a hook before an epoch that shall not run.
    n_epochs : int
        Epochs that shall run; those of the recipe unless a hook has changed it before an epoch.
    progress : float, optional
        Where a hook has changed it, the share of the schedule at which the epoch begins; the epochs that are left
        share the rest evenly, so that the learning rate falls to where it falls without a change.
    """

    module: nn.Module
    optimizers: Optimizers
    recipe: Recipe
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float = -math.inf
    best_state: dict[str, torch.Tensor] | None = None
    first_loss: float | None = None
    stopped: bool = False
    n_epochs: int = 0
    progress: float | None = None

    def __post_init__(self) -> None:
        self.n_epochs = self.n_epochs or self.recipe.epochs

    def place(self, step: int, steps: int) -> float:
        """Place in the schedule, counted in steps of the recipe, of a step of this epoch of so many."""
        if self.progress is None:
            return self.epoch * steps + step
        share = self.progress + (1 - self.progress) * step / (steps * (self.n_epochs - self.epoch))
        return share * self.recipe.epochs * steps

    def group(self, name: str) -> dict[str, Any]:
        """The entry of a parameter group in its optimizer: ``params``, ``lr`` and so on.

        Raises
        ------
        UsageError
            No parameter is in a group of this name.
        """
        groups = {group["name"]: group for group in named_groups(self.optimizers)}
        return groups[check_choice("parameter group", name, groups)]

    def optimizer_buffers(self, parameter: nn.Parameter) -> list[torch.Tensor]:
        """See :func:`decomp.pipelines.training.optimizers.buffers_of`."""
        return buffers_of(self.optimizers, parameter)


@dataclass(frozen=True)
class _Inputs:
    """Arguments of :func:`fit` that all epochs share."""

    stage: str
    n_images: int
    batches: Batches
    loss: Loss
    validate: Validate | None
    n_validation: int
    keep_best: bool
    n_parts: int
    slices: int
    precision: str
    hooks: tuple[Hooks, ...]
    device: torch.device
    reporter: Reporter | None


def fit(
    module: nn.Module,
    recipe: Recipe,
    *,
    stage: str,
    n_images: int,
    batches: Batches,
    loss: Loss,
    validate: Validate | None = None,
    n_validation: int = 0,
    keep_best: bool = True,
    n_parts: int = 1,
    slices: int = 1,
    precision: str | None = None,
    checkpoint: str | Path | None = None,
    start_over: str = "remove it",
    identity: Mapping[str, Any] | None = None,
    hooks: Iterable[Hooks] = (),
    device: str | torch.device = "cpu",
    reporter: Reporter | None = None,
) -> Training:
    """Train `module` in place; resumes from `checkpoint` where that exists.

    Parameters
    ----------
    module : torch.nn.Module
        Trained in place; on return in eval mode, on `device`, contiguous, with the weights of the last epoch.
    recipe : Recipe
    stage : str
        Names this training; its random draws are its own.
    n_images : int
        Number of training images.
    batches : callable
        ``batches(order, batch_size, augment_seed)`` yields ``(images, labels or None)`` for a LongTensor `order` of
        numbers below `n_images`. The last, incomplete batch of an epoch is left out where there is a complete one.
        Where several processes train, a fourth argument is the slice of places in every batch that are wanted
        (:func:`decomp.pipelines.distributed.trained_module.places_of`); the batches of all of them are those of one.
    loss : callable
        ``loss(module, images, labels)`` returns a scalar tensor; called in training mode under autocast.
    validate : callable, optional
        ``validate(module)`` returns a dict of numbers. Called in eval mode before the first epoch and after each.
    n_validation : int
        Images that `validate` counts accuracies on, for their intervals.
    keep_best : bool
        Keep a copy of the weights with the highest ``score`` among the numbers of `validate`, of equal ones the
        earliest.
    n_parts : int
        Parts of a batch that are computed one after the other, so that less is in memory; their gradients add up to
        those of the batch (:func:`decomp.pipelines.training.gradients.add_gradients`).
    slices : int
        An epoch is one of so many equal parts of a pass over the images, at most as many as there are batches.
    precision : {'float32', 'bfloat16'}, optional
        In which the loss is computed, by autocast; weights stay in float32. The usual one of the device where not
        given (:func:`decomp.pipelines.measure.devices.usual_precision`).
    checkpoint : path, optional
        File that is rewritten after each epoch and read at the start.
    start_over : str
        The way to train anew where the checkpoint cannot be used, for messages.
    identity : mapping, optional
        Plain values that a checkpoint must share with this call besides the recipe (digests, options).
    hooks : iterable of Hooks
    device : torch.device or str
    reporter : Reporter, optional

    Returns
    -------
    Training

    Raises
    ------
    UsageError
        The groups of the recipe do not fit the module's parameters, or two hooks name their state alike.
    NumericalError
        A loss was NaN or Inf, or the training diverges (:func:`decomp.pipelines.training.epochs.divergence`); names
        the epoch. The module then has the best weights so far, where these are kept, and the hooks have saved them.
    FileError
        The checkpoint is unreadable or belongs to another training.
    """
    hooks = tuple(hooks)
    chosen = pick_device(device)
    inputs = _Inputs(
        stage, n_images, batches, loss, validate, n_validation, keep_best, n_parts, slices,
        precision or usual_precision(chosen), hooks, chosen, reporter,
    )  # fmt: skip
    module.to(inputs.device).to(memory_format=torch.channels_last)
    training = Training(module, make_optimizers(module, recipe), recipe)
    identity = {**_identity(module, recipe, inputs), **(identity or {})}
    if checkpoint is not None and Path(checkpoint).exists():
        checkpoints.restore(training, checkpoint, identity, hooks, start_over)
        if reporter is not None:
            reporter.step(f"resuming after epoch {training.epoch} of {recipe.epochs}")
        call_hooks(hooks, "after_save", training)
    elif validate is not None:
        _record(training, inputs, {"loss": None, "learning_rate": None}, started=time.perf_counter())
    try:
        with shared_training(module) as called:
            _train(training, inputs, called, checkpoint, identity)
    except NumericalError as error:
        if training.best_state is not None:
            module.load_state_dict(training.best_state)
            call_hooks(hooks, "after_save", training)
        fix = f"lower the learning rate (now {recipe.learning_rate:g})"
        fix += f" and {start_over}" if checkpoint is not None and Path(checkpoint).exists() else ""
        raise NumericalError(error.thing, error.rule, error.got, fix) from error
    module.to(memory_format=torch.contiguous_format)
    module.eval()
    return training


def _train(
    training: Training, inputs: _Inputs, called: nn.Module, checkpoint: str | Path | None, identity: Mapping[str, Any]
) -> None:
    """Train until the last epoch, until a hook stops it, or until it diverges."""
    hooks, expected = inputs.hooks, 0
    while training.epoch < training.n_epochs:
        started = time.perf_counter()
        call_hooks(hooks, "before_epoch", training)
        if training.stopped:
            break
        if inputs.reporter is not None and expected != training.n_epochs:
            expected = training.n_epochs
            inputs.reporter.expect({_label(epoch, expected): 1.0 for epoch in range(training.epoch, expected)})
        line = _train_epoch(training, inputs, called)
        training.epoch += 1
        call_hooks(hooks, "after_epoch", training)
        _record(training, inputs, line, started)
        assert training.first_loss is not None
        changed = last_change(hooks)
        since = [line for line in training.history if not changed or line["epoch"] > changed]
        sign = divergence(since, training.first_loss, inputs.n_validation)
        if sign:
            _report_epoch(training, inputs, saved=False)
            raise NumericalError(f"epoch {training.epoch}", f"the training diverges: {sign}")
        if checkpoint is not None:
            checkpoints.save(training, checkpoint, identity, hooks)
        # Only now: whoever stops the process between the two is told of the epochs that are in the file.
        _report_epoch(training, inputs)
        call_hooks(hooks, "after_save", training)


def _report_epoch(training: Training, inputs: _Inputs, **fields: Any) -> None:
    """Print and log the last epoch; other programs read from the log which epochs a checkpoint holds."""
    if inputs.reporter is None:
        return
    line = training.history[-1]
    words = epoch_words(line, inputs.n_validation)
    label, left = _label(training.epoch - 1, training.n_epochs), inputs.reporter.time_left()
    inputs.reporter.step(f"{label}: {words}{left}", **line, **fields)


def _label(epoch: int, n_epochs: int) -> str:
    return f"epoch {epoch + 1} of {n_epochs}"


def copy_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as contiguous copies on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }


def _identity(module: nn.Module, recipe: Recipe, inputs: _Inputs) -> dict[str, Any]:
    """Plain values that two runs of the same training share."""
    parameters, rules = group_parameters(module, recipe), recipe.rules()
    groups = {
        f"group {group.name}": {**vars(rules[group.name]), "parameters": parameters[group.name]}
        for group in recipe.groups
    }
    return {
        "stage": inputs.stage, "n_images": int(inputs.n_images), **recipe.to_json(), **groups,
        "keep_best": inputs.keep_best, "computed_in": inputs.precision, "hooks_with_a_state": state_names(inputs.hooks),
    }  # fmt: skip


def _train_epoch(training: Training, inputs: _Inputs, called: nn.Module) -> dict[str, Any]:
    """Train for one epoch; returns the loss and the learning rates for the history."""
    recipe, stage, device = training.recipe, inputs.stage, inputs.device
    epoch, module, optimizers = training.epoch, training.module, training.optimizers
    n_images, rules = inputs.n_images // inputs.slices, recipe.rules()
    steps, (round_, part) = max(1, n_images // recipe.batch_size), divmod(epoch, inputs.slices)
    order = torch.randperm(inputs.n_images, generator=seeds.generator(recipe.seed, stage, "order", round_))
    order = order[part * n_images :][: min(n_images, steps * recipe.batch_size)]
    augment_seed = seeds.derive_seed(recipe.seed, stage, "augment", epoch)
    losses, size = EpochLosses(epoch), len(order) // steps
    # Each process drops other entries: those of the same places would be those of other images.
    dropout_seed = seeds.derive_seed(recipe.seed, stage, "dropout", epoch, *([number()] if number() else []))
    own = [own_places(size)] if count() > 1 else []
    module.train()
    with _seeded(dropout_seed, device), _bar(training, inputs, order) as bar:
        batches = ahead(inputs.batches(order, recipe.batch_size, augment_seed, *own), device)
        for step, (images, labels) in enumerate(batches):
            set_learning_rates(optimizers, rules, training.place(step, steps), steps)
            images = to_device(images, device)
            labels = None if labels is None else labels.to(device, non_blocking=True)
            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            # Gradients are averaged over processes, whose shares of a batch may differ by one image.
            weight = len(images) * count() / size if own else 1.0
            value = add_gradients(
                called, inputs.loss, images, labels, device, n_parts=inputs.n_parts, weight=weight,
                precision=inputs.precision,
            )  # fmt: skip
            call_hooks(inputs.hooks, "after_backward", training)
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            for optimizer in optimizers.values():
                optimizer.step()
            call_hooks(inputs.hooks, "after_step", training)
            losses.add(value)
            if bar is not None:
                bar.update(size)
    mean = losses.mean()
    training.first_loss = losses.first if training.first_loss is None else training.first_loss
    return {"loss": mean, **_learning_rates(training)}


def _learning_rates(training: Training) -> dict[str, float]:
    """Those of the last step: of the default groups, which share theirs, and of each group of the recipe."""
    rates = {}
    for group in named_groups(training.optimizers):
        name = "learning_rate" if group["name"] in (WEIGHTS, BIASES) else f"learning_rate_{group['name']}"
        rates[name] = group["lr"]
    return rates


def _bar(training: Training, inputs: _Inputs, order: torch.Tensor) -> AbstractContextManager[Progress | None]:
    """The progress bar of an epoch; None inside where nothing is reported."""
    if inputs.reporter is None:
        return nullcontext()
    return inputs.reporter.progress(len(order), _label(training.epoch, training.n_epochs), "images", summary=False)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside; afterwards they are as they were."""
    cuda = device.type == "cuda"
    number = device.index if device.index is not None else 0
    with torch.random.fork_rng(devices=[number] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(number):
                torch.cuda.manual_seed(seed)
        yield


def _record(training: Training, inputs: _Inputs, line: dict[str, Any], started: float) -> None:
    """Validate, keep the weights if they are the best so far, and append a line to the history."""
    metrics: dict[str, float] = {}
    if inputs.validate is not None:
        training.module.eval()
        metrics = {name: float(value) for name, value in inputs.validate(training.module).items()}
        if inputs.keep_best and metrics["score"] > training.best_score:
            training.best_score, training.best_epoch = metrics["score"], training.epoch
            training.best_state = copy_state(training.module)
    seconds = round(time.perf_counter() - started, 3)
    training.history.append({"epoch": training.epoch, **line, **metrics, "seconds": seconds})
