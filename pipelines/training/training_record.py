"""Record of a training beside its weights: options, accuracies, and the place where both are kept."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decomp.errors import UsageError

from ...data.formats.digests import digest_file
from ...data.formats.json_files import read_json, write_json
from ...data.formats.paths import safe_name
from ...data.network_folder import content_of
from ..console.options import REPR_OPTIONS, TrainOptions
from ..console.parse import AUTO
from ..run.directory import RunDirectory
from ..run.record import library_versions
from .loop import Training
from .losses import LABEL_SMOOTHING
from .recipe import Recipe

KIND = "decomp weights"
#: Values of the recipe in the record.
RECORDED = (
    "epochs", "learning_rate", "batch_size", "schedule", "warmup_epochs", "momentum", "nesterov", "weight_decay",
    "clip_norm", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a training keeps its results, and the way to start over; ``run`` is None where these are only files."""

    weights: Path
    start_over: str
    run: RunDirectory | None = None

    @property
    def checkpoint(self) -> Path:
        return self.weights.with_suffix(".checkpoint")

    @property
    def record(self) -> Path:
        return self.weights.with_suffix(".json")

    @property
    def option(self) -> str:
        """The option of the command line that names the place."""
        return f"--out {shlex.quote(self.weights.name)}" if self.run is None else f"--run {shlex.quote(str(self.run))}"


def weights_file(out: str | os.PathLike[str] | None, model: str) -> Path:
    """The file for the weights of a training outside a run: NAME.safetensors where none is given."""
    if out is not None:
        return Path(out)
    return Path(f"{model.removeprefix('zoo:') if model.startswith('zoo:') else safe_name(model)}.safetensors")


def identity(options: TrainOptions) -> dict[str, Any]:
    """Plain values that decide a training beside its recipe."""
    values: dict[str, Any] = {"model": options.model, "data": options.data, "label_smoothing": LABEL_SMOOTHING}
    if (settings := options.repr_settings()) is not None:
        values["scheme"] = {"name": options.scheme, **settings.to_json()}
    if options.sparsity is not None:
        values |= {"sparsity": options.sparsity, "proximal": options.proximal}
    if options.precision != AUTO:
        values["precision"] = options.precision
    if (content := content_of(options.model)) is not None:
        values["content"] = content  # a folder keeps its name when its network changes
    return values


def require_same_start(options: TrainOptions, record: Mapping[str, Any], name: str) -> None:
    """Refuse a finished training of a network in a folder that holds another one by now.

    Raises
    ------
    UsageError
    """
    before, now = record.get("options", {}).get("content"), content_of(options.model)
    if before is not None and now is not None and before != now:
        rule = f"was trained from the network in {options.model}, which is another one now"
        raise UsageError(name, rule, fix="give --redo to train that one, or give another --run")


def record_options(options: TrainOptions, recipe: Recipe) -> dict[str, Any]:
    """Options and values of the recipe, as the record keeps them."""
    return {**identity(options), **{name: getattr(recipe, name) for name in RECORDED}}


def write_record(
    place: Place, options: TrainOptions, recipe: Recipe, accuracies: dict[str, float], n_images: dict[str, int],
    training: Training, more: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write the record of a finished training, whose weights are in their place.

    Parameters
    ----------
    place : Place
    options : TrainOptions
        Complete: with values where the command left them to the zoo's recipe.
    recipe : Recipe
    accuracies, n_images : mapping
        By the images they are of.
    training : Training
    more : mapping
        Further entries.
    """
    flags = {"model": "--model", "data": "--data", "epochs": "--epochs", "learning_rate": "--learning-rate"}
    flags |= {"batch_size": "--batch-size", "seed": "--seed"}
    given = [f"{flag} {getattr(options, name)}" for name, flag in flags.items()]
    given += [] if options.schedule is None else [f"--schedule {options.schedule}"]
    given += [] if options.sparsity is None else [f"--sparsity {options.sparsity:g}"]
    given += ["--proximal"] if options.proximal else []
    given += [f"--precision {options.precision}"] if options.precision != AUTO else []
    given += [f"--scheme {options.scheme}"] if options.scheme != "standard" else []
    for name, flag in REPR_OPTIONS.items():
        if (value := getattr(options, name)) not in (None, False):
            given.append(flag if value is True else f"{flag} {value}")
    record = {
        "command": f"python cli.py train {' '.join(given)} {place.option}",
        "seed": options.seed,
        "epochs": options.epochs,
        "options": record_options(options, recipe),
        "accuracy": accuracies,
        "images": n_images,
        "parameters": sum(parameter.numel() for parameter in training.module.parameters()),
        "validation_accuracy_by_epoch": [line["validation_accuracy"] for line in training.history],
        "versions": library_versions(),
        "sha256": digest_file(place.weights),
        **more,
    }
    write_json(place.record, record, kind=KIND)
    return record


def finished_record(place: Place, options: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier training with these options; None where there is none.

    Raises
    ------
    UsageError
        The weights were trained with other options.
    """
    if not (place.weights.exists() and place.record.exists()):
        return None
    record = read_json(place.record, kind=KIND, fix="remove it to train anew")
    if record.get("options") != options or record.get("sha256") != digest_file(place.weights):
        rule = "must not name weights that were trained otherwise"
        raise UsageError("--out", rule, got=place.weights, fix="give another name")
    return record
