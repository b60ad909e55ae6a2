"""Phases of learning a task: fine-tuning, one rung of pruning, retraining of picks; each ends in a committed file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from decomp.errors import FileError, NumericalError
from decomp.schemes.cpg_ladder import Rung
from decomp.schemes.cpg_module import TaskModule, TaskState, state_of

from ...data.formats.digests import digest_json
from ...data.formats.tensor_groups import read_groups, write_groups
from ..console.options import TaskOptions
from ..console.reporter import Reporter
from ..training import checkpoints
from ..training.hooks import Hooks
from ..training.loop import Training, fit
from ..training.recipe import ParameterGroup, Recipe
from .guard import Guard
from .images import TaskImages
from .scheme import CpgScheme
from .store import TaskStore

KIND, VERSION = "decomp-task-phase", 1
PICK_RATE, RETRAIN_PICK_RATE = 5e-4, 1e-4
#: Epochs of a retraining without a better validation, after which it ends.
PATIENCE = 5


@dataclass(frozen=True, eq=False)
class Phase:
    """Result of a phase.

    Attributes
    ----------
    state : TaskState
    validation, training : float
        Accuracies of the state.
    content : str
        Digest of the phase's file.
    """

    state: TaskState
    validation: float
    training: float
    content: str


@dataclass(frozen=True, eq=False)
class Learning:
    """All that the phases of one task share.

    Attributes
    ----------
    number : int
        Of the task.
    identity : str
        Digest of what decides the result: options, images, tasks before.
    """

    store: TaskStore
    options: TaskOptions
    images: TaskImages
    number: int
    guard: Guard
    identity: str
    device: torch.device
    reporter: Reporter

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.store.options.seed

    @property
    def work(self) -> Path:
        """Folder of the phases' files."""
        return self.store.run.tasks_work

    def steps_per_epoch(self) -> int:
        """As the training loop counts them."""
        return max(1, len(self.images.train) // self.options.batch_size)


def milestones(epochs: int, *shares: float) -> tuple[int, ...]:
    """Whole epochs at these shares of a training, those that lie inside it, each once."""
    found = sorted({round(epochs * share) for share in shares})
    return tuple(epoch for epoch in found if 0 < epoch < epochs)


def _stepped(rate: float, epochs: int, shares: tuple[float, ...], gammas: tuple[float, ...]) -> dict[str, Any]:
    """Settings of a rate that falls at shares of a training; the last milestone at an epoch counts."""
    factors = {round(epochs * share): gamma for share, gamma in zip(shares, gammas)}
    inside = milestones(epochs, *shares)
    if not inside:
        return {"learning_rate": rate, "schedule": "constant"}
    return {
        "learning_rate": rate, "schedule": "milestones", "milestones": inside,
        "gamma": tuple(factors[epoch] for epoch in inside),
    }  # fmt: skip


def finetune(learning: Learning, start: TaskState, parent: str, *, owns: bool, name: str) -> Phase:
    """Train all weights that the task owns, its own entries, and its picks of earlier weights.

    Parameters
    ----------
    learning : Learning
    start : TaskState
    parent : str
        Digest of what `start` was made from.
    owns : bool
        A task that owns no weight keeps learning its picks to the end.
    name : str
        Of the phase.
    """
    options, epochs = learning.options, learning.options.epochs
    picks = _stepped(PICK_RATE, epochs, (0.5, 0.7) if owns else (0.5,), (0.2, 0.0) if owns else (0.2,))
    return _run(learning, name, start, parent, finetune_recipe(learning), picks=picks if options.picking else None)


def finetune_recipe(learning: Learning) -> Recipe:
    """Of a fine-tuning without its picks: the rate falls to a tenth after half of the epochs, and after four fifths."""
    options = learning.options
    return stepped_recipe(options.epochs, options.learning_rate, options.batch_size, learning.seed)


def stepped_recipe(epochs: int, learning_rate: float, batch_size: int, seed: int) -> Recipe:
    """The same, given by its numbers."""
    return _recipe(epochs, batch_size, seed, _stepped(learning_rate, epochs, (0.5, 0.8), (0.1, 0.1)))


def prune(learning: Learning, start: TaskState, parent: str, rung: Rung, *, name: str) -> Phase | None:
    """Release weights on one rung of the ladder and recover; picks stay as they are.

    Returns
    -------
    Phase or None
        None where the training diverged: the ladder ends there.
    """
    options = learning.options
    rate = {"learning_rate": options.prune_learning_rate, "schedule": "constant"}
    recipe = _recipe(options.prune_epochs, options.batch_size, learning.seed, rate)
    try:
        return _run(learning, name, start, parent, recipe, rung=rung)
    except NumericalError as error:
        learning.reporter.step(f"the ladder ends at {rung.target:g}: {error.rule}")
        (learning.work / f"{name}.checkpoint").unlink(missing_ok=True)
        return None


def retrain(learning: Learning, start: TaskState, parent: str, *, name: str) -> Phase:
    """Learn the picks anew beside the weights of the task; owners stay. The result is the best epoch's."""
    options = learning.options
    rate = {"learning_rate": options.prune_learning_rate, "schedule": "constant"}
    recipe = _recipe(options.retrain_epochs, options.batch_size, learning.seed, rate)
    picks = {"learning_rate": RETRAIN_PICK_RATE, "schedule": "constant"}
    return _run(learning, name, start, parent, recipe, picks=picks, best=True)


def _recipe(epochs: int, batch_size: int, seed: int, rate: Mapping[str, Any]) -> Recipe:
    return Recipe(
        epochs=epochs, batch_size=batch_size, warmup_epochs=0.0, momentum=0.9, nesterov=True,
        weight_decay=0.0, seed=seed, **rate,
    )  # fmt: skip


def _with_picks(recipe: Recipe, picks: Mapping[str, Any]) -> Recipe:
    group = ParameterGroup("picks", ("picks.*",), optimizer="adam", **picks)
    return Recipe(**{**vars(recipe), "groups": (group,)})


def _run(
    learning: Learning, name: str, start: TaskState, parent: str, recipe: Recipe, *,
    picks: Mapping[str, Any] | None = None, rung: Rung | None = None, best: bool = False,
) -> Phase:  # fmt: skip
    """Train one phase, or read its file where it is finished."""
    path = learning.work / f"{name}.safetensors"
    picking = picks is not None and bool(start.picks)
    if picking:
        assert picks is not None
        recipe = _with_picks(recipe, picks)
    identity = digest_json([learning.identity, name, parent, recipe.to_json()])
    if path.exists():
        return _read(path, identity, tuple(start.owners))
    images, store = learning.images, learning.store
    network = store.family_at(start.width).build(start.width, images.n_classes)
    module = TaskModule(network, start, learning.number)
    module.picks.requires_grad_(picking)
    scheme = CpgScheme(module, learning.guard, learning.options.weight_decay, rung, PATIENCE if best else None)
    checkpoint = learning.work / f"{name}.checkpoint"

    def validate(network: torch.nn.Module) -> dict[str, float]:
        return {"score": (value := images.validation(network, learning.device)), "validation_accuracy": value}

    learning.reporter.step(f"task {learning.options.name}: {in_words(name)}")
    # Without n_validation: a new head may be right by chance before it is trained, which is no accuracy to lose.
    training = fit(
        module, recipe, stage=f"tasks/{learning.number}/{name}", n_images=len(images.train), batches=images.batches,
        loss=classification_loss, validate=validate, keep_best=best, checkpoint=checkpoint,
        start_over=f"remove {checkpoint}", identity={"phase": identity}, hooks=[Hooks.of(scheme, "cpg")],
        device=learning.device, reporter=learning.reporter,
    )  # fmt: skip
    _finish(learning, path, identity, training, module, best)
    checkpoint.unlink(missing_ok=True)
    return _read(path, identity, module.layers)


def in_words(name: str) -> str:
    """A phase for a reader: ``prune-0.3`` is ``'release 30 % of its weights'``."""
    kind, _, value = name.partition("-")
    if kind == "finetune":
        return f"fine-tune at width {float(value):g}"
    return f"release {100 * float(value):g} % of its weights" if kind == "prune" else "learn its picks anew"


def _finish(learning: Learning, path: Path, identity: str, training: Training, module: TaskModule, best: bool) -> None:
    """Check the result of a phase and write its file."""
    validation = training.history[-1]["validation_accuracy"]
    if best and training.best_state is not None:
        module.load_state_dict(training.best_state)
        validation = training.best_score
    state = state_of(module.state_dict(), module.layers, module.width)
    learning.guard.check_state(state)
    facts = {
        "identity": identity, "width": state.width, "validation": validation,
        "training": learning.images.training(module, learning.device),
        "epochs": training.epoch,
    }  # fmt: skip
    groups = {"weight": state.weights, "owner": state.owners, "pick": state.picks, "private": state.private}
    write_groups(path, groups, facts, kind=KIND, format_version=VERSION)


def _read(path: Path, identity: str, layers: Sequence[str]) -> Phase:
    fix = "add the task with --redo, which begins it again; committed tasks stay"
    groups, header, content = read_groups(path, kind=KIND, format_version=VERSION, fix=fix)
    if header.get("identity") != identity:
        raise FileError(path, "belongs to another attempt at this task", fix=fix)
    weights, owners, picks = (
        {layer: groups[group][layer] for layer in layers} if group in groups else {}
        for group in ("weight", "owner", "pick")
    )  # the file sorts them by name
    state = TaskState(header["width"], weights, owners, picks, groups.get("private", {}))
    return Phase(state, header["validation"], header["training"], content)


def classification_loss(module: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """Mean cross-entropy."""
    assert labels is not None
    return functional.cross_entropy(module(images).float(), labels)


def clear(work: Path) -> None:
    """Remove the files of an unfinished task."""
    if work.exists():
        shutil.rmtree(work)


def state_digest(state: TaskState) -> str:
    """SHA-256 (hex) over all values of a state."""
    return checkpoints.digest(
        [state.width, state.weights, state.owners, state.picks, state.private]
    )  # fmt: skip
