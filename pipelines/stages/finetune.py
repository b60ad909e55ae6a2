"""Stage ``finetune``: the decomposed network is trained a little, with labels or after the original's outputs."""

import shutil
from dataclasses import dataclass, field

from decomp.errors import FileError, UsageError

from ...data.formats import network_file
from ...data.formats.digests import digest_file
from ..console.program import program
from ..console.reporter import Reporter
from ..measure.devices import pick_device
from ..run.directory import RunDirectory
from ..run.loading import load_network, require_whole, warn_of_other_versions
from ..training import loop, tensorboard
from ..training.batchnorm import disable_dropout, insert_batchnorm
from ..training.hooks import Hooks
from ..training.losses import loss_for
from ..training.outputs import NetworkWriter, checkpoint_file, events_dir, metrics_file
from ..training.recipe import Recipe
from ..training.tasks import CalibrationTask, LabelledTask

LABELS = ("train", "none")
WARMUP_EPOCHS = 0.5
CLIP_NORM = 1.0


@dataclass(frozen=True)
class FinetuneResult:
    """What the stage came to.

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
    facts: dict = field(default_factory=dict)
    done_before: bool = False

    def lines(self):
        """Lines for a person."""
        f, best = self.facts, self.run.finetune_dir / "best"
        if self.done_before:
            return [f"{best}: already fine-tuned with these options, nothing to do"]
        form = "{:.2%}" if f["metric"] == "validation accuracy" else "{:.4g}"
        change = f"{form.format(f['before'])} before, {form.format(f['after'])} after epoch {f['best_epoch']}"
        lines = [f"{f['metric']} on {f['n_validation']:,} held-out images: {change}"]
        if f["best_epoch"] == 0:
            lines.append("no epoch was better than the network before tuning, which is therefore kept as the best")
        lines.append(f"best network: {best}, last: {self.run.finetune_dir / 'last'}, epochs: {metrics_file(self.run)}")
        lines.append(f"next: {program()} evaluate --run {self.run.path}")
        return lines


def finetune(
    run, *, epochs=5, learning_rate=0.01, batch_size=128, schedule="cosine", labels="train", distill=False,
    weight_decay=5e-4, seed=0, device="auto", redo=False, reporter=None,
):  # fmt: skip
    """Tune the decomposed network and keep the last and the best of it.

    Parameters
    ----------
    run : path or RunDirectory
        With a decomposed network in it.
    epochs, learning_rate, batch_size, schedule, weight_decay, seed
        See :class:`decomp.pipelines.training.recipe.Recipe`. The gradient's norm is clipped to 1 and half an epoch (at
        most
        half the training) is spent warming up, since a network without batch normalisation forgives less.
    labels : {'train', 'none'}
        'train': cross-entropy on the training split, of which a seeded tenth (at most 5,000 images) is held out; the
        best epoch is the one with the highest accuracy there. 'none': the frozen calibration images alone; the loss is
        the Kullback-Leibler divergence from the original's outputs, of which the lowest value on a held-out tenth of
        the calibration images is the best. Dropout is off then: the original's outputs, unlike labels, say all there
        is to say of an image, and dropout only adds noise to what follows them.
    distill : bool
        With labels: the mean of cross-entropy and that divergence.
    device : str
    redo : bool
        Drop what was tuned before and start over.
    reporter : Reporter, optional

    Returns
    -------
    FinetuneResult

    Raises
    ------
    FileError
        There is no decomposed network, or it was tuned with other options before.
    UsageError
        An option is out of range, or labels are asked for where there are none.
    NumericalError
        The loss became NaN or Inf.

    Notes
    -----
    With labels, batch normalisations stand where the original had them while it is trained, and are folded in all that
    is written (see :mod:`decomp.surgery.batchnorm`); not in batches of less than 16 images. The network before
    tuning is epoch 0
    and may be the best: tuning never returns what is worse on the held-out images. Stopped and given again, it goes on
    after the last finished epoch and ends bit-identical. The test split
    is never read.
    """
    if labels not in LABELS:
        raise UsageError("labels", "must be one of " + ", ".join(LABELS), got=labels)
    if distill and labels == "none":
        raise UsageError("distill", "adds the original's outputs to labels", got="labels none", fix="leave it out")
    recipe = Recipe(
        epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, schedule=schedule,
        weight_decay=weight_decay, seed=seed, warmup_epochs=WARMUP_EPOCHS, clip_norm=CLIP_NORM,
    )  # fmt: skip
    run = RunDirectory.open(run)
    reporter = reporter or Reporter()
    require_whole(run)
    with run.lock(), reporter.stage("finetune"):
        asked = {
            "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "schedule": schedule,
            "labels": labels, "distill": distill, "weight_decay": weight_decay, "seed": seed,
        }  # fmt: skip
        network_digest = _network_digest(run)
        if redo:
            run.update_config("finetune", None)
            shutil.rmtree(run.finetune_dir, ignore_errors=True)
        elif done := _finished(run, asked, network_digest):
            return done
        begun = checkpoint_file(run).exists() and run.config("finetune") is not None
        warn_of_other_versions(run, "finetune" if begun else "decompose", reporter)
        return _tune(run, recipe, asked, network_digest, pick_device(device), reporter)


def _network_digest(run):
    if not (run.model_dir / "structure.json").is_file():
        raise FileError(
            run.path, "there is no decomposed network yet", fix=f"run `decomp decompose --run {run.path} --speedup 4x`"
        )
    return digest_file(run.model_dir / "structure.json")


def _finished(run, asked, network_digest):
    """The earlier result if it is what is asked for; an error if another one is there."""
    before = run.config("finetune")
    if before is None:
        return None
    if before["network"] != network_digest:
        raise FileError(
            run.finetune_dir,
            f"was tuned from another decomposed network (digest {before['network'][:12]}, now {network_digest[:12]})",
            fix="tune the new one with finetune --redo",
        )
    differs = [
        f"{key.replace('_', ' ')} {before['asked'].get(key)} (now {value})"
        for key, value in asked.items()
        if before["asked"].get(key) != value
    ]
    if differs:
        raise FileError(
            run.finetune_dir,
            "was tuned with other options: " + ", ".join(differs),
            fix="give --redo to tune again with these, or evaluate what is there",
        )
    for name in ("best", "last"):
        network_file.read_structure(run.finetune_dir / name)
    return FinetuneResult(run, before["facts"], done_before=True)


def _tune(run, recipe, asked, network_digest, device, reporter):
    needs_original = asked["labels"] == "none" or asked["distill"]
    original = load_network(run, run.original_dir).to(device) if needs_original else None
    task = (LabelledTask if asked["labels"] == "train" else CalibrationTask)(run, recipe.seed)
    reporter.step(
        f"fine-tuning on {len(task.train):,} {task.description}, {len(task.held_out):,} more held out, on {device}",
        n_train=len(task.train), n_validation=len(task.held_out),
    )  # fmt: skip
    network = load_network(run, run.model_dir)
    normalised = _normalise(run, network, task, recipe, device, reporter)
    hooks = [Hooks(after_save=NetworkWriter(run, network_digest, network, normalised))]
    board = tensorboard.EventWriter(events_dir(run))
    if tensorboard.available():
        hooks.append(Hooks(after_save=board))
    else:
        reporter.step(f"no TensorBoard events: it is not installed ({tensorboard.INSTALL})")
    if asked["labels"] == "none":
        disable_dropout(network)
    outcome = loop.fit(
        network,
        recipe,
        stage="finetune",
        n_images=len(task.train),
        batches=task.batches,
        loss=loss_for(asked["labels"], asked["distill"], original),
        validate=lambda network: task.validate(network, original, device),
        checkpoint=checkpoint_file(run),
        identity={**asked, "network": network_digest, "normalised": normalised},
        hooks=hooks,
        device=device,
        reporter=reporter,
    )
    board.close()
    facts = {
        "metric": task.metric.replace("_", " "), "before": outcome.history[0][task.metric],
        "after": outcome.history[outcome.best_epoch][task.metric], "best_epoch": outcome.best_epoch,
        "epochs": recipe.epochs, "n_train": len(task.train), "n_validation": len(task.held_out),
    }  # fmt: skip
    run.update_config("finetune", {"asked": asked, "network": network_digest, "facts": facts})
    checkpoint_file(run).unlink(missing_ok=True)
    return FinetuneResult(run, facts)


def _normalise(run, network, task, recipe, device, reporter):
    if not task.uses_batchnorm:
        return []
    layers = [edit["module"] for edit in network_file.read_structure(run.original_dir)["edits"]]
    paths = insert_batchnorm(network, layers, recipe, len(task.train), task.batches, device)
    if paths:
        reporter.step(f"batch normalisation behind {len(paths)} layers in training; folded in what is written")
    return paths
