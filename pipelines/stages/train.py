"""Stage ``train``: train a network from random weights on labelled images, as the shipped weights of the zoo were."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from decomp import seeds
from decomp.errors import UsageError

from ...data import weights, zoo
from ...data.formats.atomic import commit
from ...data.formats.digests import digest_file
from ...data.formats.json_files import read_json, write_json
from ...data.formats.paths import safe_name
from ...data.models import load_model
from ...data.sources import ImageSource, open_source
from ..console.options import TrainOptions
from ..console.program import command_line
from ..console.reporter import Reporter
from ..measure.accuracy import accuracy
from ..measure.devices import pick_device
from ..measure.intervals import short_share
from ..run.record import library_versions
from ..training.hold_out import hold_out
from ..training.loop import Training, copy_state, fit
from ..training.recipe import Recipe

KIND = "decomp weights"
DEFAULTS = {"epochs": 20, "learning_rate": 0.05, "batch_size": 128}
LABEL_SMOOTHING = 0.1
#: Values of the recipe in the record beside the weights.
RECORDED = (
    "epochs", "learning_rate", "batch_size", "schedule", "warmup_epochs", "momentum", "nesterov", "weight_decay",
    "clip_norm", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingResult:
    """File of the weights, and ``record``, the content of the JSON beside it."""

    weights: Path
    record: dict[str, Any]
    already_done: bool = False

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        if self.already_done:
            yield f"{self.weights} is already there, trained with these options; nothing to do"
        for name, value in self.record["accuracy"].items():
            if value is not None:
                yield f"top-1 on the {name} images: {short_share(value, self.record['images'][name])}"
        yield f"weights: {self.weights} ({self.weights.stat().st_size / 2**20:.2f} MiB)"
        model, data = (shlex.quote(self.record["options"][name]) for name in ("model", "data"))
        options = f"--model {model} --weights {shlex.quote(str(self.weights))} --data {data}"
        yield f"next: {command_line('freeze', Path('runs', self.weights.stem), options)}"


def train(
    model: str, *, data: str | None = None, out: str | os.PathLike[str] | None = None, epochs: int | None = None,
    learning_rate: float | None = None, batch_size: int | None = None, seed: int = 0, device: str = "auto",
    reporter: Reporter | None = None,
) -> TrainingResult:  # fmt: skip
    """Train a network from random weights and write them with a record of how.

    A seeded tenth of the training images (at most 5,000) is held out and validated on after every epoch. The weights
    written are those of the last epoch; the test split is read once, after it, for the accuracy in the record.

    Parameters
    ----------
    model : str
        ``zoo:NAME``, or another name that :func:`decomp.data.models.load_model` knows and that gives a network with
        random weights for the source's images.
    data : str, optional
        A source with labels; for the zoo the network's own where not given.
    out : path, optional
        The safetensors file; its record is written beside it with the suffix ``.json``. ``NAME.safetensors`` in the
        current folder where not given.
    epochs, learning_rate, batch_size : optional
        Those of the zoo's recipe (or 20, 0.05, 128) where not given.
    seed : int
        Determines initial weights, held-out images, order, augmentation and dropout.
    device : str
        'auto', 'cpu', 'cuda' or 'cuda:N'.
    reporter : Reporter, optional

    Returns
    -------
    TrainingResult

    Raises
    ------
    UsageError
        The source has no labels, an option is out of its range, or the file has weights that were trained with other
        options.
    NumericalError
        The loss became NaN or infinite, or the training diverges.
    """
    reporter = reporter or Reporter()
    options = TrainOptions(
        model=model, data=data, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed
    )
    name, data, recipe = _completed(options)
    weights_file = Path(out) if out is not None else Path(f"{name}.safetensors")
    if weights_file.suffix != ".safetensors":
        raise UsageError("--out", "must end in .safetensors", got=out)
    recorded = {"model": model, "data": data, "label_smoothing": LABEL_SMOOTHING}
    record_options = {**recorded, **{name: getattr(recipe, name) for name in RECORDED}}
    if finished := _finished(weights_file, record_options):
        return finished
    chosen = pick_device(device)
    source, module = _open(model, data, recipe.seed)
    n_parameters = sum(parameter.numel() for parameter in module.parameters())
    reporter.step(f"training {model} on {data}: {n_parameters:,} parameters, {recipe.epochs} epochs on {chosen}")
    checkpoint = weights_file.with_suffix(".checkpoint")
    training, n_images = _fit(module, recipe, source, checkpoint, recorded, chosen, reporter)
    accuracies = {"validation": training.history[-1]["validation_accuracy"]}
    if source.test is not None:
        accuracies["test"] = accuracy(module, source.test, torch.arange(len(source.test)), chosen)
    assert source.n_classes is not None  # the training split has labels
    with commit(weights_file) as part:
        weights.write(
            copy_state(module), part, input_shape=source.input_shape, n_classes=source.n_classes,
            preprocessing=source.prepared,
        )  # fmt: skip
    record = _write_record(weights_file, record_options, accuracies, n_images, training)
    checkpoint.unlink(missing_ok=True)
    return TrainingResult(weights_file, record)


def classification_loss(module: nn.Module, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy with label smoothing."""
    assert labels is not None
    return functional.cross_entropy(module(images).float(), labels, label_smoothing=LABEL_SMOOTHING)


def _completed(options: TrainOptions) -> tuple[str, str, Recipe]:
    """Name of the network, source of images and recipe, from the zoo or the defaults where the options say nothing.

    Raises
    ------
    UsageError
        No images are named, for a network that has none of its own.
    """
    entry = None
    if options.model.startswith("zoo:"):
        entry = zoo.find(options.model.removeprefix("zoo:"))
    data = options.data or (entry.dataset if entry else None)
    if data is None:
        raise UsageError("--data", "images to train on must be named", fix="for example --data fashion-mnist")
    values: dict[str, Any] = {**DEFAULTS, **(entry.recipe if entry else {})}
    for name in DEFAULTS:
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    name = entry.name if entry else safe_name(options.model)
    return name, data, Recipe(**values, seed=options.seed)


def _open(model: str, data: str, seed: int) -> tuple[ImageSource, nn.Module]:
    """The images, and a network with seeded random weights for them (a factory's weights are as it returned them)."""
    source = open_source(data)
    if not source.train.has_labels:
        raise UsageError(data, "training needs images with labels", got="a source without labels")
    if source.n_classes is None:  # a data set that does not list its labels
        labels = source.train.labels(torch.arange(len(source.train)))
        assert labels is not None
        source.n_classes = int(labels.max()) + 1
    # A network of the zoo is built for the images; for another network the images are resized.
    shape = source.input_shape if model.startswith("zoo:") else source.input_shape[1:]
    weights_seed = seeds.derive_seed(seed, "train", "weights")
    loaded = load_model(model, weights="random", input_size=shape, n_classes=source.n_classes, seed=weights_seed)
    if loaded.input_shape != source.input_shape:
        source = open_source(data, input_shape=loaded.input_shape)
    return source, loaded.module


def _fit(
    module: nn.Module, recipe: Recipe, source: ImageSource, checkpoint: Path, identity: dict[str, Any],
    device: torch.device, reporter: Reporter,
) -> tuple[Training, dict[str, int]]:  # fmt: skip
    """Train on all but the held-out images; returns the training and the number of images of each kind."""
    trained_on, held_out = hold_out(len(source.train), recipe.seed)

    def validate(network: nn.Module) -> dict[str, float]:
        return {"score": (value := accuracy(network, source.train, held_out, device)), "validation_accuracy": value}

    training = fit(
        module,
        recipe,
        stage="train",
        n_images=len(trained_on),
        batches=lambda order, size, augment: source.train.batches(trained_on[order], size, augment_seed=augment),
        loss=classification_loss,
        validate=validate,
        n_validation=len(held_out),
        keep_best=False,
        checkpoint=checkpoint,
        start_over=f"remove {checkpoint}",
        identity=identity,
        device=device,
        reporter=reporter,
    )
    n_test = 0 if source.test is None else len(source.test)
    return training, {"train": len(trained_on), "validation": len(held_out), "test": n_test}


def _write_record(
    weights_file: Path, options: dict[str, Any], accuracies: dict[str, float], n_images: dict[str, int],
    training: Training,
) -> dict[str, Any]:  # fmt: skip
    flags = {"model": "--model", "data": "--data", "epochs": "--epochs", "learning_rate": "--learning-rate"}
    flags |= {"batch_size": "--batch-size", "seed": "--seed"}
    command = "python cli.py train " + " ".join(f"{flag} {options[key]}" for key, flag in flags.items())
    record = {
        "command": f"{command} --out {shlex.quote(weights_file.name)}",
        "seed": options["seed"],
        "epochs": options["epochs"],
        "options": options,
        "accuracy": accuracies,
        "images": n_images,
        "parameters": sum(parameter.numel() for parameter in training.module.parameters()),
        "validation_accuracy_by_epoch": [line["validation_accuracy"] for line in training.history],
        "versions": library_versions(),
        "sha256": digest_file(weights_file),
    }
    write_json(weights_file.with_suffix(".json"), record, kind=KIND)
    return record


def _finished(weights_file: Path, options: dict[str, Any]) -> TrainingResult | None:
    """The earlier result if the file was trained with these options; an error if it was trained with others."""
    record_file = weights_file.with_suffix(".json")
    if not (weights_file.exists() and record_file.exists()):
        return None
    record = read_json(record_file, kind=KIND, fix="remove it to train anew")
    if record.get("options") != options or record.get("sha256") != digest_file(weights_file):
        rule = "must not name weights that were trained otherwise"
        raise UsageError("--out", rule, got=weights_file, fix="give another name")
    return TrainingResult(weights_file, record, already_done=True)
