"""Stage ``train``: a network from scratch on labelled images, as the shipped weights of the zoo were made."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from decomp import seeds
from decomp.errors import UsageError

from ...data import weights, zoo
from ...data.formats.atomic import commit
from ...data.formats.digests import digest_file
from ...data.formats.json_files import read_json, write_json
from ...data.formats.paths import safe_name
from ...data.models import load_model
from ...data.sources import open_source
from ..console.reporter import Reporter
from ..measure import devices
from ..measure.accuracy import accuracy as accuracy_on
from ..run.record import library_versions
from ..training import loop
from ..training.hold_out import hold_out
from ..training.recipe import Recipe

KIND = "decomp weights"
DEFAULTS = {"epochs": 20, "learning_rate": 0.05, "batch_size": 128}
LABEL_SMOOTHING = 0.1
#: Entries of the record that come from the recipe; the others are always the same in this stage.
RECORDED = (
    "epochs", "learning_rate", "batch_size", "schedule", "warmup_epochs", "momentum", "nesterov", "weight_decay",
    "clip_norm", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to: the files, and ``record``, the content of the JSON beside the weights."""

    weights: Path
    record: dict
    already_done: bool = False

    def lines(self):
        """The result for a person, a line each."""
        if self.already_done:
            yield f"{self.weights} is already there, trained with these options; nothing to do"
        for name, value in self.record["accuracy"].items():
            if value is not None:
                yield f"top-1 on the {name} images: {value:.2%}"
        yield f"weights: {self.weights} ({self.weights.stat().st_size / 2**20:.2f} MiB)"


def train(
    model,
    *,
    data=None,
    out=None,
    epochs=None,
    learning_rate=None,
    batch_size=None,
    seed=0,
    device="auto",
    reporter=None,
):
    """Train a network from fresh weights and write them with a record of how.

    A seeded tenth of the training images (at most 5,000) is held out and tells, epoch by epoch, how well it goes. The
    weights written are those of the last epoch; the test images are looked at once, after it.

    Parameters
    ----------
    model : str
        ``zoo:NAME``, or another name that :func:`decomp.data.models.load_model` knows and that gives a network with
        fresh weights for the source's images.
    data : str, optional
        A source with labels; for the zoo the network's own where not given.
    out : path, optional
        The safetensors file; its record is written beside it with the suffix ``.json``. ``NAME.safetensors`` in the
        current folder where not given.
    epochs, learning_rate, batch_size : optional
        Those of the zoo's recipe (or 20, 0.05, 128) where not given.
    seed : int
        Decides initial weights, held-out images, order, augmentation and dropout.
    device : str
        'auto', 'cpu', 'cuda' or 'cuda:N'.
    reporter : Reporter, optional

    Returns
    -------
    TrainingResult

    Raises
    ------
    UsageError
        The source has no labels, or an option is out of its range.
    NumericalError
        The loss became NaN or Inf.
    """
    reporter = reporter or Reporter()
    entry, name = _zoo_entry(model)
    data = data or (entry.dataset if entry else None)
    if data is None:
        raise UsageError("--data", "images to train on must be named", fix="for example --data fashion-mnist")
    recipe = _recipe(entry, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed)
    out = Path(out) if out is not None else Path(f"{name}.safetensors")
    if out.suffix != ".safetensors":
        raise UsageError("--out", "must end in .safetensors", got=out)
    options = {"model": model, "data": data, "label_smoothing": LABEL_SMOOTHING, **_recorded(recipe)}
    if done := _finished(out, options):
        return done
    source, module = _open(model, data, seed)
    device = devices.pick_device(device)
    reporter.step(
        f"training {model} on {data}: {sum(p.numel() for p in module.parameters()):,} parameters, "
        f"{recipe.epochs} epochs on {device}"
    )
    trained_on, held_out = hold_out(len(source.train), seed)
    checkpoint = out.with_suffix(".checkpoint")
    outcome = loop.fit(
        module,
        recipe,
        stage="train",
        n_images=len(trained_on),
        batches=lambda order, size, augment: source.train.batches(trained_on[order], size, augment_seed=augment),
        loss=classification_loss,
        validate=lambda net: _validate(net, source.train, held_out, device),
        keep_best=False,
        checkpoint=checkpoint,
        identity={key: value for key, value in options.items() if key not in _recorded(recipe)},
        device=device,
        reporter=reporter,
    )
    accuracy = {"validation": outcome.history[-1]["validation_accuracy"]}
    if source.test is not None:
        accuracy["test"] = accuracy_on(module, source.test, torch.arange(len(source.test)), device)
    counts = {"train": len(trained_on), "validation": len(held_out), "test": len(source.test or ())}
    state = loop.copy_state(module)
    with commit(out) as part:
        weights.write(state, part, input_shape=source.input_shape, n_classes=source.n_classes)
    record = _record(out, module, options, accuracy, counts, outcome)
    checkpoint.unlink(missing_ok=True)
    return TrainingResult(out, record)


def classification_loss(module, images, labels):
    """Cross-entropy with label smoothing."""
    return functional.cross_entropy(module(images).float(), labels, label_smoothing=LABEL_SMOOTHING)


def _zoo_entry(model):
    if model.startswith("zoo:"):
        name = model.removeprefix("zoo:")
        return zoo.find(name), name
    return None, safe_name(model)


def _recipe(entry, **given):
    options = {**DEFAULTS, **(dict(entry.recipe) if entry else {})}
    options.update({key: value for key, value in given.items() if value is not None})
    return Recipe(**options)


def _recorded(recipe):
    """The values of a recipe that a training of this stage can differ by."""
    return {name: getattr(recipe, name) for name in RECORDED}


def _open(model, data, seed):
    """The images, and a network with seeded fresh weights (your own factory's are as it returned them) for them."""
    source = open_source(data)
    if not source.train.has_labels:
        raise UsageError(data, "training needs images with labels", got="a source without labels")
    # A network of the zoo is built for the images; to another the images are fitted.
    shape = source.input_shape if model.startswith("zoo:") else source.input_shape[1:]
    weights_seed = seeds.derive_seed(seed, "train", "weights")
    loaded = load_model(model, weights="random", input_size=shape, n_classes=source.n_classes, seed=weights_seed)
    if loaded.input_shape != source.input_shape:
        source = open_source(data, input_shape=loaded.input_shape)
    return source, loaded.module


def _validate(module, split, indices, device):
    value = accuracy_on(module, split, indices, device)
    return {"score": value, "validation_accuracy": value}


def _record(out, module, options, accuracy, counts, outcome):
    flags = {"model": "--model", "data": "--data", "epochs": "--epochs", "learning_rate": "--learning-rate"}
    flags |= {"batch_size": "--batch-size", "seed": "--seed"}
    command = "python cli.py train " + " ".join(f"{flag} {options[key]}" for key, flag in flags.items())
    record = {
        "command": f"{command} --out {shlex.quote(out.name)}",
        "seed": options["seed"],
        "epochs": options["epochs"],
        "options": options,
        "accuracy": accuracy,
        "images": counts,
        "parameters": sum(value.numel() for value in module.parameters()),
        "validation_accuracy_by_epoch": [line["validation_accuracy"] for line in outcome.history],
        "versions": library_versions(),
        "sha256": digest_file(out),
    }
    write_json(out.with_suffix(".json"), record, kind=KIND)
    return record


def _finished(out, options):
    record_file = out.with_suffix(".json")
    if not (out.exists() and record_file.exists()):
        return None
    record = read_json(record_file, kind=KIND, fix="remove it to train anew")
    if record.get("options") != options or record.get("sha256") != digest_file(out):
        raise UsageError("--out", "must not name weights that were trained otherwise", got=out, fix="give another name")
    return TrainingResult(out, record, already_done=True)
