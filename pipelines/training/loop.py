"""The one training loop of the project: SGD with momentum over seeded epochs, resumable after any of them.

What differs between uses is passed in: a loss callable, a validation callable and a few hooks. Nothing here knows where
images or networks come from.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from decomp import seeds
from decomp.errors import NumericalError, UsageError

from ..measure.devices import autocast, pick_device, to_device
from . import checkpoints

SCHEDULES = ("cosine", "constant")
#: Losses are looked at once in so many steps, so that a GPU is not made to wait after each of them.
CHECK_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """How to train: everything that decides the result besides the data, the network and the loss.

    Parameters
    ----------
    epochs : int
        Passes over the training images, at least 1.
    learning_rate : float
        The highest learning rate, > 0.
    batch_size : int
        Images a step, at least 1.
    schedule : {'cosine', 'constant'}
        After the warm-up: half a cosine down to 0 at the end of the last epoch, or always `learning_rate`.
    warmup_epochs : float
        Epochs (also a fraction) during which the rate rises linearly to `learning_rate`.
    momentum, nesterov, weight_decay :
        As in ``torch.optim.SGD``. Weight decay acts on weights of two dimensions and more, not on biases or BN.
    clip_norm : float, optional
        The gradient is scaled down to at most this Euclidean norm.
    seed : int
        Decides the order of images, augmentation and dropout, each epoch by itself.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 128
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    seed: int = 0

    def __post_init__(self):
        rules = [
            ("epochs", "must be at least 1", self.epochs >= 1),
            ("batch size", "must be at least 1", self.batch_size >= 1),
            ("learning rate", "must be a positive number", 0 < self.learning_rate < math.inf),
            ("schedule", "must be one of " + ", ".join(SCHEDULES), self.schedule in SCHEDULES),
            ("warmup epochs", "must not be negative", 0 <= self.warmup_epochs < math.inf),
            ("momentum", "must be in 0..1 (1 excluded)", 0 <= self.momentum < 1),
            ("weight decay", "must not be negative", 0 <= self.weight_decay < math.inf),
            ("clip norm", "must be positive", self.clip_norm is None or self.clip_norm > 0),
        ]
        for name, rule, holds in rules:
            if not holds:
                raise UsageError(name, rule, got=getattr(self, name.replace(" ", "_")))


def learning_rate_at(recipe, step, steps_per_epoch):
    """Learning rate of a step, counted from 0 over the whole training.

    With ``W`` warm-up steps of ``T`` in all and the peak ``r``: ``r (step + 1) / W`` for ``step < W``, then
    ``r/2 (1 + cos(pi (step - W) / (T - W)))`` or constantly ``r``. A warm-up never takes more than half the steps.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def hold_out(n_images, seed, *, fraction=0.1, at_most=5000):
    """Split the training images into those trained on and those held out for validation.

    The draw depends on `seed` and `n_images` alone, not on who asks: networks that were trained with a seed and are
    fine-tuned with the same seed are validated on images that neither has seen.

    Returns
    -------
    train, validation : LongTensor
        Disjoint sorted indices; together ``0..n_images-1``. `validation` has ``min(at_most, fraction * n_images)``
        entries, at least 1.
    """
    if n_images < 2:
        raise UsageError("training images", "at least 2 are needed, one to train on and one to validate", got=n_images)
    n_validation = max(1, min(at_most, int(fraction * n_images)))
    order = torch.randperm(n_images, generator=seeds.generator(seed, "hold-out", n_images))
    return order[n_validation:].sort().values, order[:n_validation].sort().values


@dataclass
class Training:
    """What a training has come to; hooks get it and may change the module and the optimizer in place.

    ``history`` has one dict an epoch: ``epoch``, ``loss`` (mean over the epoch, None for epoch 0), ``learning_rate``
    (of its last step), ``seconds`` and whatever ``validate`` returned. ``best_*`` follow the highest ``score``.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    epoch: int = 0
    history: list = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float = -math.inf
    best_state: dict | None = None


@dataclass(frozen=True)
class Hooks:
    """Callables that get the :class:`Training` at fixed places of the loop; each may be None.

    ``after_backward`` sees the gradients before they are clipped and applied, ``after_step`` the new weights,
    ``after_epoch`` those of a whole epoch before they are validated. ``after_save`` is for files that follow from the
    checkpoint: it is called once an epoch is recorded and saved, and also when a checkpoint was read, since the process
    that wrote it may have been killed before it came to them. A hook that draws random numbers derives its generator
    from the epoch, or a resumed training would differ.
    """

    before_epoch: Callable[[Training], None] | None = None
    after_backward: Callable[[Training], None] | None = None
    after_step: Callable[[Training], None] | None = None
    after_epoch: Callable[[Training], None] | None = None
    after_save: Callable[[Training], None] | None = None


def fit(
    module,
    recipe,
    *,
    stage,
    n_images,
    batches,
    loss,
    validate=None,
    checkpoint=None,
    identity=None,
    hooks=(),
    device="cpu",
    reporter=None,
):
    """Train `module` in place; goes on from `checkpoint` where that exists.

    Parameters
    ----------
    module : torch.nn.Module
        Trained in place; on return in eval mode, on `device`, contiguous, with the weights of the last epoch.
    recipe : Recipe
        What decides the result.
    stage : str
        Names this training; its random draws are its own.
    n_images : int
        How many training images there are.
    batches : callable
        ``batches(order, batch_size, augment_seed)`` yields ``(images, labels or None)`` for a LongTensor `order` of
        numbers below `n_images`. The last, incomplete batch of an epoch is left out where there is a complete one.
    loss : callable
        ``loss(module, images, labels)`` returns a scalar tensor; called in training mode under autocast.
    validate : callable, optional
        ``validate(module)`` returns a dict of numbers, among them ``score``: higher is better. Called in eval mode
        before the first epoch and after each. The weights with the highest score are kept, the earlier ones if equal.
    checkpoint : path, optional
        File that is rewritten after each epoch and read at the start.
    identity : dict, optional
        Plain values that a checkpoint must share with this call besides the recipe (digests, options).
    hooks : iterable of Hooks
    device : torch.device or str
    reporter : optional
        Anything with ``step(message, **fields)`` and ``progress(total, label, unit)``.

    Returns
    -------
    Training

    Raises
    ------
    NumericalError
        A loss was NaN or Inf; names the epoch and the step.
    FileError
        The checkpoint is unreadable or belongs to another training.
    """
    device = pick_device(device)
    hooks = tuple(hooks)
    module.to(device=device, memory_format=torch.channels_last)
    training = Training(module, _optimizer(module, recipe), recipe)
    identity = {"stage": stage, "n_images": int(n_images), **asdict(recipe), **(identity or {})}
    if checkpoint is not None and Path(checkpoint).exists():
        checkpoints.restore(training, checkpoint, identity)
        if reporter is not None:
            reporter.step(f"going on after epoch {training.epoch} of {recipe.epochs}")
        _call(hooks, "after_save", training)
    elif validate is not None:
        started = time.perf_counter()
        _record(training, {"loss": None, "learning_rate": None}, validate, started)
    while training.epoch < recipe.epochs:
        started = time.perf_counter()
        _call(hooks, "before_epoch", training)
        line = _train_epoch(training, stage, n_images, batches, loss, hooks, device, reporter)
        training.epoch += 1
        _call(hooks, "after_epoch", training)
        _record(training, line, validate, started)
        if checkpoint is not None:
            checkpoints.save(training, checkpoint, identity)
        _call(hooks, "after_save", training)
        if reporter is not None:
            line = training.history[-1]
            reporter.step(f"epoch {training.epoch} of {recipe.epochs}: {describe(line)}", **line)
    module.to(memory_format=torch.contiguous_format)
    module.eval()
    return training


def describe(line):
    """One epoch of the history in words."""
    parts = []
    for key, value in line.items():
        if key not in ("epoch", "score") and value is not None:
            parts.append(f"{key.replace('_', ' ')} {value:.4g}")
    return ", ".join(parts)


def _train_epoch(training, stage, n_images, batches, loss, hooks, device, reporter):
    recipe, epoch, module = training.recipe, training.epoch, training.module
    steps = max(1, n_images // recipe.batch_size)
    order = torch.randperm(n_images, generator=seeds.generator(recipe.seed, stage, "order", epoch))
    order = order[: steps * recipe.batch_size]
    augment_seed = seeds.derive_seed(recipe.seed, stage, "augment", epoch)
    label = f"epoch {epoch + 1} of {recipe.epochs}"
    progress = nullcontext() if reporter is None else reporter.progress(len(order), label, "images")
    losses = _Losses(epoch, recipe)
    module.train()
    with _seeded(seeds.derive_seed(recipe.seed, stage, "dropout", epoch), device), progress as bar:
        for step, (images, labels) in enumerate(batches(order, recipe.batch_size, augment_seed)):
            rate = learning_rate_at(recipe, epoch * steps + step, steps)
            for group in training.optimizer.param_groups:
                group["lr"] = rate
            images = to_device(images, device)
            labels = None if labels is None else labels.to(device, non_blocking=True)
            training.optimizer.zero_grad(set_to_none=True)
            with autocast(device):
                value = loss(module, images, labels)
            value.backward()
            _call(hooks, "after_backward", training)
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            training.optimizer.step()
            _call(hooks, "after_step", training)
            losses.add(value.detach())
            if bar is not None:
                bar.update(len(images))
    return {"loss": losses.mean(), "learning_rate": rate}


class _Losses:
    """Mean loss of an epoch, and the watch for NaN and Inf."""

    def __init__(self, epoch, recipe):
        self.epoch, self.recipe = epoch, recipe
        self.pending, self.total, self.count = [], 0.0, 0

    def add(self, value):
        self.pending.append(value)
        if len(self.pending) == CHECK_EVERY:
            self._look()

    def mean(self):
        self._look()
        return self.total / self.count

    def _look(self):
        if not self.pending:
            return
        values = torch.stack(self.pending).double().cpu()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            first = int(bad[0])
            raise NumericalError(
                f"epoch {self.epoch + 1}, step {self.count + first + 1}",
                "the loss must be finite",
                got=float(values[first]),
                fix=f"lower the learning rate (now {self.recipe.learning_rate:g})",
            )
        self.total += float(values.sum())
        self.count += len(self.pending)
        self.pending = []


@contextmanager
def _seeded(seed, device):
    """Torch's own generators seeded inside, and afterwards as they were."""
    cuda = device.type == "cuda"
    number = device.index if device.index is not None else 0
    with torch.random.fork_rng(devices=[number] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(number):
                torch.cuda.manual_seed(seed)
        yield


def _optimizer(module, recipe):
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    nesterov = recipe.nesterov and recipe.momentum > 0
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)


def _call(hooks: Iterable[Hooks], place, training):
    for hook in hooks:
        function = getattr(hook, place)
        if function is not None:
            function(training)


def _record(training, line, validate, started):
    metrics = {}
    if validate is not None:
        training.module.eval()
        metrics = {name: float(value) for name, value in validate(training.module).items()}
        if metrics["score"] > training.best_score:
            training.best_score, training.best_epoch = metrics["score"], training.epoch
            training.best_state = copy_state(training.module)
    seconds = round(time.perf_counter() - started, 3)
    training.history.append({"epoch": training.epoch, **line, **metrics, "seconds": seconds})


def copy_state(module):
    """The state dict as contiguous copies on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }
