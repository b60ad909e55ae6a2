"""Stage ``finetune``: train the decomposed or pruned network for a few epochs, on labels or the original's outputs."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from decomp.errors import FileError, NumericalError

from ...data.formats.digests import digest_file
from ...data.formats.network_file import read_structure
from ..console import parse
from ..console.finetune_options import FinetuneOptions
from ..console.program import command_line
from ..console.reporter import Reporter
from ..console.words import counted
from ..measure.devices import pick_device
from ..measure.intervals import short_share
from ..run.conditions import no_compressed_network, require_same_options
from ..run.directory import RunDirectory
from ..run.loading import load_network, run_outputs, warn_of_other_versions
from ..run.networks import RunNetwork, compressed
from ..run.replacement import beside, end_exchange, exchange
from ..training import checkpoints, tensorboard
from ..training.batchnorm import disable_dropout, keep_statistics
from ..training.budget import Budget, epoch_time
from ..training.first_steps import original_answers_once, precision_for
from ..training.hooks import Hooks
from ..training.loop import Training, fit
from ..training.losses import loss_for
from ..training.memory import TrainingLimits, announced_limits, parts_of
from ..training.outputs import NetworkWriter, checkpoint_file, events_dir, metrics_file
from ..training.recipe import Recipe
from ..training.tasks import LabelledTask, TrainingTask
from ..training.tuned_network import first_image, trained_network
from ..training.unlabelled import MEMORY_BYTES, UnlabelledTask

WARMUP_EPOCHS = 0.5
DEFAULT_RATE = FinetuneOptions.learning_rate
CLIP_NORM = 1.0
START_OVER = "give --redo"
#: Frozen images are held in memory up to this fraction of a limit, one part in so many.
HELD_SHARE = 8


@dataclass(frozen=True)
class FinetuneResult:
    """Validation before and after fine-tuning, and where the networks are.

    Attributes
    ----------
    run : RunDirectory
    facts : dict
        ``metric`` (its name), ``before`` and ``after`` (its value at epoch 0 and at the best epoch), ``best_epoch``,
        ``epochs``, ``n_train``, ``n_validation``.
    done_before : bool
        The fine-tuned network was there already; nothing was done.
    """

    run: RunDirectory
    facts: dict[str, Any] = field(default_factory=dict, repr=False)
    done_before: bool = False

    def lines(self) -> list[str]:
        """Human-readable summary lines: what was found, then the next step."""
        return [*self.findings(), *self.next_steps()]

    def findings(self) -> list[str]:
        """The lines without the next step."""
        f, best = self.facts, self.run.finetune_dir / "best"
        if self.done_before:
            return [f"{best}: already fine-tuned with these options, nothing to do"]

        def shown(value: float) -> str:
            accuracy = f["metric"].endswith("accuracy")
            return short_share(value, f["n_validation"]) if accuracy else f"{value:.3g}"

        first = f"{f['metric']} on {counted(f['n_validation'], 'held-out image')}: {shown(f['before'])} before"
        if f["best_epoch"] == 0:
            rule = f"{first}, and none of {counted(f['epochs'], 'epoch')} was better"
            lines = [rule, f"the network before fine-tuning stays the best; {best} is the same one"]
        else:
            lines = [f"{first}, {shown(f['after'])} after epoch {f['best_epoch']}", f"best network: {best}"]
        lines.append(f"last network: {self.run.finetune_dir / 'last'}, epochs: {metrics_file(self.run.finetune_dir)}")
        return lines

    def next_steps(self) -> list[str]:
        """The line with the next step."""
        # Whatever was done after it: the true next command is one that status knows.
        following = "status" if self.done_before and self.run.report_json.is_file() else "evaluate"
        return [f"next: {command_line(following, self.run.path)}"]


def finetune(
    run: str | os.PathLike[str], *, epochs: int | None = None, minutes: float | None = None,
    learning_rate: float = 0.01, batch_size: int | None = None, schedule: str = "cosine", labels: str = "train",
    distill: bool = False, weight_decay: float = 5e-4, data: str | None = None, n_images: int | None = None,
    seed: int = 0, precision: str = "auto", memory: int | str | None = None, device: str = "auto", redo: bool = False,
    reporter: Reporter | None = None,
) -> FinetuneResult:  # fmt: skip
    """Fine-tune the decomposed or pruned network of a run and keep the last and the best weights.

    Parameters
    ----------
    run : path or RunDirectory
        With a decomposed or pruned network in it.
    epochs : int, optional
        5 where neither these nor the minutes are given.
    minutes : float, optional
        Instead of epochs: as many as fit into this time, at least one. They are counted after some steps were timed,
        and the learning rate falls over them; an interrupted call keeps the number. When the machine becomes slower,
        fewer are planned, and the learning rate falls faster. Where fewer than four passes over the images fit, an
        epoch is a part of them.
    learning_rate, batch_size, schedule, weight_decay, seed
        See :class:`decomp.pipelines.training.recipe.Recipe`. Batches have 128 images, without labels 32. The gradient's
        norm is clipped to 1, and the warm-up takes half an epoch (at most half the training): a network without batch
        normalisation diverges more easily.
    labels : {'train', 'none'}
        'train': cross-entropy on the training split, of which a seeded tenth (at most 5,000 images) is held out; the
        best epoch has the highest accuracy there. 'none': all training images, fewer than 10,000 augmented and mixed;
        the loss is the change of the original's outputs (:mod:`decomp.execution.output_change`), which are computed
        once where no image is changed, there is more than one epoch, and they fit in memory; the best epoch has
        the lowest one on the frozen images that no fit has used, which are left out of the training. Of images in
        memory the frozen ones are used alone. An epoch has at least 1,000 images: fewer are used several times.
        Dropout is then off: the original's outputs determine every class probability of an image, and dropout only
        adds noise to them.
    distill : bool
        With labels: the mean of cross-entropy and that divergence.
    data : str, optional
        Without labels: other images to train on, as :func:`decomp.data.sources.open_source` reads them. Those among
        them that are held out are left out too.
    n_images : int, optional
        Without labels: at most so many images; of the run's own those that were fitted come first.
    precision : {'auto', 'float32', 'bfloat16'}
        In which network and original are computed in training; weights, their gradients and the validation are in
        float32. 'auto': on a GPU bfloat16 where it computes it. On a CPU float32, and with ``minutes`` whichever is
        measured to be faster: the same number of epochs then gives the same network on every machine.
    memory : int or str, optional
        Limit in bytes, or as text such as ``8GiB``; half of the machine's memory where not given, on a GPU no more than
        is free there. A batch that needs more is computed in parts, whose gradients add up to those of the batch.
    device : str
    redo : bool
        Start over. An earlier fine-tuning stays until the new one is whole; an interrupted call that is repeated
        continues.
    reporter : Reporter, optional

    Returns
    -------
    FinetuneResult

    Raises
    ------
    FileError
        There is no such network, or another one was fine-tuned before.
    UsageError
        An option is out of range, the network was fine-tuned with other options before, or the images have no labels.
    NumericalError
        The loss became NaN or infinite, or the training diverges; the best network so far is kept.

    Notes
    -----
    With labels and batches of at least 16 images, the network has batch normalisations where the original had them
    while it is trained; they are folded in the files (see :mod:`decomp.surgery.batchnorm`). A pruned network keeps
    those of the original, with their scales and shifts. The network before
    fine-tuning is epoch 0 and may be the best: the result is never worse on the held-out images. An interrupted call
    that is repeated resumes after the last finished epoch and ends bit-identical. The test split is never read.
    """
    options = FinetuneOptions(
        epochs=epochs, minutes=minutes, learning_rate=learning_rate, batch_size=batch_size, schedule=schedule,
        labels=labels, distill=distill, weight_decay=weight_decay, data=data, n_images=n_images, seed=seed,
        precision=precision,
    )  # fmt: skip
    target, n_bytes = pick_device(device), None if memory is None else parse.memory_bytes(memory)
    directory = RunDirectory.open(run)
    reporter = reporter or Reporter()
    with directory.lock(), reporter.stage("finetune"):
        source = compressed(directory)
        if source is None:
            raise no_compressed_network(directory)
        network_digest = digest_file(source.path(directory) / "structure.json")
        end_exchange(directory, "finetune", directory.finetune_dir)
        if redo:
            folder = _beside_earlier(directory, options, network_digest)
        elif finished := _finished(directory, options, source, network_digest):
            return finished
        else:
            folder = directory.finetune_dir
        begun = checkpoint_file(folder).exists() and directory.config("finetune") is not None
        warn_of_other_versions(directory, "finetune" if begun else source.stage, reporter)
        return _finetune(directory, folder, options, source, network_digest, target, n_bytes, reporter, redo=redo)


def _beside_earlier(run: RunDirectory, options: FinetuneOptions, network_digest: str) -> Path:
    """The folder for a fine-tuning that replaces an earlier one; what the same call left there is kept."""
    folder = run.finetune_dir if run.config("finetune") is None else beside(run.finetune_dir)
    asked = {**options.to_json(), "network": network_digest}
    if options.epochs is None:
        asked.pop("epochs")  # a time decides them
    if folder == run.finetune_dir or not checkpoints.made_with(checkpoint_file(folder), asked):
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _finished(
    run: RunDirectory, options: FinetuneOptions, source: RunNetwork, network_digest: str
) -> FinetuneResult | None:
    """The earlier result if the options are the same; None if there is none.

    Raises
    ------
    FileError, UsageError
        Another network was fine-tuned, or this one with other options.
    """
    record = run.config("finetune")
    if record is None:
        return None
    if record["network"] != network_digest:
        earlier = f"was made from another {source.label} network, {record['network'][:12]}"
        fix = "fine-tune the new one with finetune --redo"
        raise FileError(run.finetune_dir, earlier, got=f"{network_digest[:12]} now", fix=fix)
    fix = "give --redo to fine-tune again with these, or evaluate what is there"
    require_same_options(run, "fine-tuned", options, record["asked"], fix)
    for name in ("best", "last"):
        read_structure(run.finetune_dir / name)
    return FinetuneResult(run, record["facts"], done_before=True)


def _finetune(
    run: RunDirectory, folder: Path, options: FinetuneOptions, source: RunNetwork, network_digest: str,
    device: torch.device, memory: int | None, reporter: Reporter, *, redo: bool,
) -> FinetuneResult:  # fmt: skip
    began, (task, recipe) = time.perf_counter(), _task(run, options, device, memory, reporter)
    repeated = _repeated_images(task, folder, redo=redo)
    needs_original = options.labels == "none" or options.distill
    original = load_network(run, run.original_dir).to(device) if needs_original else None
    network, inserted, own = trained_network(run, source, task, recipe, device, memory, reporter)
    limits = _limits(
        options, task, recipe, network.to(device), original, memory, checkpoint_file(folder), device, reporter
    )
    task.at_a_time, n_parts = limits.validated, parts_of(min(recipe.batch_size, len(task.train)), limits)
    writer = NetworkWriter(
        folder, network_digest, network, source.path(run), batchnorm_paths=inserted, own_batchnorms=own
    )  # fmt: skip
    events = _event_writer(folder, reporter)
    if options.labels == "none":
        disable_dropout(network)  # not in the files, whose network the writer has copied
        keep_statistics(network)
    loss = loss_for(options.labels, options.distill, original, run_outputs(run))
    shared: dict[str, Any] = {
        "n_images": len(task.train), "batches": task.batches, "loss": loss, "device": device, "n_parts": n_parts,
    }  # fmt: skip
    begun = checkpoints.begun_identity(checkpoint_file(folder), START_OVER)
    time_limit = None if options.minutes is None else Budget(options.minutes, began)
    precision = precision_for(options.precision, network, recipe, shared, time_limit, begun, reporter)
    shared["precision"] = precision
    hooks = [Hooks(after_save=writer), *([] if events is None else [Hooks(after_save=events)])]

    def validate(network: nn.Module) -> dict[str, float]:
        return task.validate(network, original, device)

    kept = original_answers_once(task, original, network, recipe, shared, time_limit, begun, reporter)
    if time_limit is not None:
        recipe = time_limit.plan(
            recipe, checkpoint_file(folder), START_OVER,
            lambda: epoch_time(network, recipe, validate=validate, **shared),
        )  # fmt: skip
        hooks.append(time_limit.hook(reporter))
        reporter.step(time_limit.words(recipe))
    slices = 1 if time_limit is None else time_limit.slices
    try:
        training = fit(
            network, recipe, stage="finetune", validate=validate, n_validation=task.n_validation, slices=slices,
            checkpoint=checkpoint_file(folder), start_over=START_OVER, hooks=hooks, reporter=reporter, **shared,
            identity={
                **options.to_json(), "epochs": recipe.epochs, "network": network_digest,
                "normalised": [*inserted, *own], "limits": limits.to_json(), "slices": slices, "targets_kept": kept,
                **repeated,
            },
        )  # fmt: skip
    except NumericalError as error:
        raise _stopped(error, folder, options) from error
    if events is not None:
        events.close()
    facts = {**_facts(task, training), "precision": precision, "targets_kept": kept}
    return _finished_now(run, options, network_digest, facts)


def _repeated_images(task: TrainingTask, folder: Path, *, redo: bool) -> dict[str, str]:
    """Entry of the training's identity where an epoch repeats images, which are augmented otherwise each time.

    Raises
    ------
    FileError
        The training was begun by a version that augmented them alike, and `redo` does not allow to begin it again.
    """
    if task.n_train == len(task.train):
        return {}
    begun = checkpoints.begun_identity(checkpoint_file(folder), START_OVER)
    if begun and "repeated_images" not in begun:
        if not redo:
            rule = "was begun by a version that augmented an image alike each time that an epoch repeats it"
            raise FileError(checkpoint_file(folder), rule, fix=f"{START_OVER} to train anew")
        shutil.rmtree(folder)
    return {"repeated_images": "augmented each time"}


def _finished_now(
    run: RunDirectory, options: FinetuneOptions, network_digest: str, facts: dict[str, Any]
) -> FinetuneResult:
    """Put the finished files in their place and record the fine-tuning."""
    exchange(run, "finetune", run.finetune_dir)
    run.update_config("finetune", {"asked": options.to_json(), "network": network_digest, "facts": facts})
    checkpoint_file(run.finetune_dir).unlink(missing_ok=True)
    return FinetuneResult(run, facts)


def _task(
    run: RunDirectory, options: FinetuneOptions, device: torch.device, memory: int | None, reporter: Reporter
) -> tuple[TrainingTask, Recipe]:
    """The images, announced, and the recipe; of one epoch where a time decides."""
    task: TrainingTask
    if options.labels == "train":
        task = LabelledTask(run, options.seed)
    else:
        held = MEMORY_BYTES if memory is None else min(MEMORY_BYTES, memory // HELD_SHARE)
        task = UnlabelledTask(
            run, options.seed, data=options.data, n_images=options.n_images, in_memory=held, reporter=reporter
        )
    for note in task.notes:
        reporter.step(note)
    for warning in task.warnings:
        reporter.warn(warning)
    reporter.step(
        f"fine-tuning on {task.n_train:,} {task.description}, {task.n_validation:,} more held out, on {device}",
        n_train=task.n_train, n_validation=task.n_validation,
    )  # fmt: skip
    assert options.batch_size is not None  # the options have chosen one
    recipe = Recipe(
        epochs=options.epochs or 1, learning_rate=options.learning_rate, batch_size=options.batch_size,
        schedule=options.schedule, weight_decay=options.weight_decay, seed=options.seed,
        warmup_epochs=WARMUP_EPOCHS, clip_norm=CLIP_NORM,
    )  # fmt: skip
    return task, recipe


def _limits(
    options: FinetuneOptions, task: TrainingTask, recipe: Recipe, network: nn.Module, original: fx.GraphModule | None,
    memory: int | None, checkpoint: Path, device: torch.device, reporter: Reporter,
) -> TrainingLimits:  # fmt: skip
    return announced_limits(
        network, first_image(task), batch_size=min(recipe.batch_size, len(task.train)), memory=memory, device=device,
        original=original, statistics=options.labels == "train", held=task.held, checkpoint=checkpoint,
        start_over=START_OVER, command="finetune", reporter=reporter,
    )  # fmt: skip


def _stopped(error: NumericalError, folder: Path, options: FinetuneOptions) -> NumericalError:
    """The error of a training that diverged, with the network that is kept and the command line that goes on."""
    best, rate = folder / "best", options.learning_rate
    kept = f"the best network so far is in {best}; " if (best / "structure.json").is_file() else ""
    lower = DEFAULT_RATE if rate > DEFAULT_RATE else rate / 10
    return NumericalError(error.thing, error.rule, error.got, f"{kept}begin again with --lr {lower:g} --redo")


def _event_writer(folder: Path, reporter: Reporter) -> tensorboard.EventWriter | None:
    if tensorboard.available():
        return tensorboard.EventWriter(events_dir(folder))
    reporter.step(f"no TensorBoard events: it is not installed ({tensorboard.INSTALL})")
    return None


def _facts(task: TrainingTask, training: Training) -> dict[str, Any]:
    """See :class:`FinetuneResult`."""
    best = training.best_epoch or 0
    return {
        "metric": task.metric.replace("_", " "), "before": training.history[0][task.metric],
        "after": training.history[best][task.metric], "best_epoch": best,
        "epochs": training.epoch, "n_train": task.n_train, "n_validation": task.n_validation,
    }  # fmt: skip
