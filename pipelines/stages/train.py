"""Stage ``train``: train a network from random weights on labelled images, as the shipped weights of the zoo were."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp import seeds
from decomp.errors import NumericalError, UsageError
from decomp.schemes.repr_training import RePr
from decomp.schemes.sparsity import ScalePenalty, start_scales

from ...data import weights, zoo
from ...data.formats.atomic import commit
from ...data.formats.json_files import read_json
from ...data.models import load_model
from ...data.sources import ImageSource, open_source
from ..console import parse
from ..console.options import REPR_OPTIONS, TrainOptions
from ..console.program import command_line
from ..console.python_words import said_for_options
from ..console.reporter import Reporter
from ..console.words import counted
from ..distributed.process_group import spread
from ..distributed.trained_module import places_of
from ..measure.accuracy import accuracy
from ..measure.devices import pick_device
from ..measure.intervals import short_share
from ..measure.shares import Batches
from ..run.conditions import require_same_options
from ..run.directory import RunDirectory
from ..run.replacement import beside, end_exchange, exchange
from ..run.trained import require_untouched, trained_options
from ..training.checkpoints import made_with
from ..training.first_steps import precision_for
from ..training.hold_out import hold_out
from ..training.hooks import Hooks
from ..training.loop import Training, copy_state, fit
from ..training.losses import classification_loss
from ..training.memory import announced_limits, parts_of
from ..training.recipe import Recipe
from ..training.repr_hooks import ReprHooks, make_scheme
from ..training.sparse import NEAR_ZERO, SparseTraining
from ..training.train_outputs import training_files
from ..training.training_record import (
    KIND,
    Place,
    finished_record,
    identity,
    record_options,
    require_same_start,
    weights_file,
    write_record,
)

DEFAULTS = {"epochs": 20, "learning_rate": 0.05, "batch_size": 128}


@dataclass(frozen=True)
class TrainingResult:
    """File of the weights, ``record``, the content of the JSON beside it, and ``run`` where it was trained in one."""

    weights: Path
    record: dict[str, Any] = field(repr=False)
    already_done: bool = False
    run: RunDirectory | None = None

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        if self.already_done:
            yield f"{self.weights} is already there, trained with these options; nothing to do"
        for name, value in self.record["accuracy"].items():
            if value is not None:
                yield f"top-1 on the {name} images: {short_share(value, self.record['images'][name])}"
        if best := self.record.get("best"):
            shares = [f"{short_share(best[key], self.record['images'][key])} {key}" for key in best if key != "epoch"]
            yield f"best on the validation images, after epoch {best['epoch']}: {', '.join(shares)}"
        if found := self.record.get("scale_factors"):
            zero = f", {found['zero']:,} of them 0" if found["zero"] else ""
            yield f"scale factors below {NEAR_ZERO:g}: {found['near_zero']:,} of {found['channels']:,}{zero}"
        yield f"weights: {self.weights} ({self.weights.stat().st_size / 2**20:.2f} MiB)"
        if self.run is not None:
            sparse = "scale_factors" in self.record
            options = "--criterion bn-scale --ratio 0.7" if sparse else ""
            yield f"next: {command_line('prune' if sparse else 'freeze', self.run, options)}"
            return
        model, data = (shlex.quote(self.record["options"][name]) for name in ("model", "data"))
        options = f"--model {model} --weights {shlex.quote(str(self.weights))} --data {data}"
        yield f"next: {command_line('freeze', Path('runs', self.weights.stem), options)}"


def train(
    model: str, *, data: str | None = None, out: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None, epochs: int | None = None, learning_rate: float | None = None,
    batch_size: int | None = None, schedule: str | None = None, sparsity: float | None = None, proximal: bool = False,
    scheme: str = "standard", s1: int | None = None, s2: int | None = None, drop: float | None = None,
    cycles: int | None = None, min_keep: float | None = None, first: bool | None = None, coupled: bool | None = None,
    order: str | None = None, method: str | None = None, scale: str | None = None, next_slice: str | None = None,
    seed: int = 0, precision: str = "auto", memory: int | str | None = None, redo: bool = False, device: str = "auto",
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
        current folder where neither this nor `run` is given.
    run : path or RunDirectory, optional
        A run directory, created where it does not exist; its next stages take network, weights and images from here.
    epochs, learning_rate, batch_size, schedule : optional
        Those of the zoo's recipe (or 20, 0.05, 128, 'cosine') where not given. The schedule 'milestones' lowers the
        rate to a tenth after half and after three quarters of the epochs (He et al. 2016, section 4.2).
    sparsity : float, optional
        λ of network slimming: λ·Σ|γ| is added to the loss, over the scale factors γ of batch normalisations by which
        channels can be removed (:mod:`decomp.schemes.sparsity`). All γ start at 0.5.
    proximal : bool
        With `sparsity`: a soft threshold after each step in place of a gradient, which gives zeros.
    scheme : {'standard', 'repr'}
        'repr': filters that overlap most are dropped for some epochs and come back orthogonal to the others, with the
        settings of :class:`decomp.schemes.repr_settings.ReprSettings`. 'standard' takes exactly as many steps.
    s1, s2, drop, cycles, min_keep, first, coupled, order, method, scale, next_slice : optional
        Of the scheme 'repr'.
    seed : int
        Determines initial weights, held-out images, order, augmentation and dropout.
    precision : {'auto', 'float32', 'bfloat16'}
        Of the computation; weights are in float32. 'auto': bfloat16 on a GPU that computes it, float32 elsewhere.
    memory : int or str, optional
        Limit as for :func:`decomp.pipelines.stages.finetune.finetune`.
    redo : bool
        Start over in the run. An earlier training stays until the new one is whole; an interrupted call that is
        repeated continues.
    device : str
        'auto', 'cpu', 'cuda' or 'cuda:N'.
    reporter : Reporter, optional

    Returns
    -------
    TrainingResult

    Raises
    ------
    UsageError
        The source has no labels, an option is out of its range, or there are weights already that were trained with
        other options.
    FileError
        The run directory cannot be used.
    NumericalError
        The loss became NaN or infinite, or the training diverges.
    """
    reporter = reporter or Reporter()
    asked = TrainOptions(
        model=model, data=data, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed,
        schedule=schedule, sparsity=sparsity, proximal=proximal, scheme=scheme, s1=s1, s2=s2, drop=drop, cycles=cycles,
        min_keep=min_keep, first=first, coupled=coupled, order=order, method=method, scale=scale, next_slice=next_slice,
        precision=precision,
    )  # fmt: skip
    options, recipe = _completed(asked)
    n_bytes = None if memory is None else parse.memory_bytes(memory)
    if run is not None:
        if out is not None:
            rule = "names a file, and a run keeps its weights itself"
            raise UsageError("--out", rule, got="--run beside it", fix="leave one of them out")
        return _train_in_run(RunDirectory(run), options, recipe, redo, device, n_bytes, reporter)
    if redo:
        raise UsageError("--redo", "starts over in a run directory", got="no --run", fix="leave it out, or give --run")
    file = weights_file(out, options.model)
    if file.suffix != ".safetensors":
        raise UsageError("--out", "must end in .safetensors", got=out)
    place = Place(file, f"remove {file.with_suffix('.checkpoint')}")
    if (record := finished_record(place, record_options(options, recipe))) is not None:
        return TrainingResult(place.weights, record, already_done=True)
    chosen = pick_device(device)
    result = _train(place, options, recipe, _open(options), chosen, n_bytes, reporter)
    place.checkpoint.unlink(missing_ok=True)
    return result


def _train_in_run(
    run: RunDirectory, options: TrainOptions, recipe: Recipe, redo: bool, device: str, memory: int | None,
    reporter: Reporter,
) -> TrainingResult:  # fmt: skip
    place = work = Place(run.trained_weights, "give --redo", run)
    with reporter.stage("train"), ExitStack() as locked:
        if run.run_json.exists():
            run = RunDirectory.open(run)
            locked.enter_context(run.lock())
            end_exchange(run, "train", place.weights.parent)
            if not redo and (trained := trained_options(run)) is not None:
                fix = "give --redo to train again with these, or give another --run"
                require_same_options(run, "trained", options, trained.to_json(), fix)
                record = read_json(place.record, kind=KIND)
                require_same_start(options, record, str(run.path))
                place.checkpoint.unlink(missing_ok=True)  # of a process that was stopped at the very end
                return TrainingResult(place.weights, record, already_done=True, run=run)
            require_untouched(run)
        else:
            run.check_free()
        chosen, opened = pick_device(device), _open(options)
        # As late as this, so that a mistyped name leaves nothing behind.
        run = RunDirectory.create(run)
        locked.enter_context(run.lock())
        if redo and run.config("train") is not None:
            work = Place(beside(place.weights.parent) / place.weights.name, place.start_over, run)
        if redo and (work is place or not made_with(work.checkpoint, {**identity(options), **recipe.to_json()})):
            shutil.rmtree(work.weights.parent, ignore_errors=True)
        work.weights.parent.mkdir(exist_ok=True)
        result = replace(_train(work, options, recipe, opened, chosen, memory, reporter), weights=place.weights)
        exchange(run, "train", place.weights.parent)
        facts = {key: result.record[key] for key in ("accuracy", "images", "scale_factors") if key in result.record}
        run.update_config("train", {"asked": options.to_json(), "weights": result.record["sha256"], "facts": facts})
        place.checkpoint.unlink(missing_ok=True)
        return result


def _train(
    place: Place, options: TrainOptions, recipe: Recipe, opened: _Opened, device: torch.device, memory: int | None,
    reporter: Reporter,
) -> TrainingResult:  # fmt: skip
    """Train, measure and write; the checkpoint stays."""
    source, module = opened.source, opened.module
    n_parameters = sum(parameter.numel() for parameter in module.parameters())
    reporter.step(
        f"training {options.model} on {options.data}: {n_parameters:,} parameters, "
        f"{counted(recipe.epochs, 'epoch')} on {device}"
    )
    try:
        training, scheme, n_images = _fit(opened, recipe, place, options, device, memory, reporter)
    except NumericalError as error:
        if options.sparsity is None:
            raise
        fix = f"take a smaller --sparsity (now {options.sparsity:g}), or {error.fix}"
        raise NumericalError(error.thing, error.rule, error.got, fix) from error
    accuracies = {"validation": training.history[-1]["validation_accuracy"]}
    if source.test is not None:
        accuracies["test"] = accuracy(module, source.test, torch.arange(len(source.test)), device)
    assert source.n_classes is not None  # the training split has labels
    last = copy_state(module)
    with commit(place.weights) as part:
        weights.write(
            last, part, input_shape=source.input_shape, n_classes=source.n_classes, preprocessing=source.prepared
        )
    more: dict[str, Any] = {"steps": recipe.epochs * max(1, n_images["train"] // recipe.batch_size)}
    more |= {} if training.best_state is None else {"best": _measure_best(training, source, device)}
    more |= {} if scheme is None else {"scheme": scheme.record()}
    more |= {} if opened.sparse is None else {"scale_factors": opened.sparse.facts()}
    record = write_record(place, options, recipe, accuracies, n_images, training, more)
    return TrainingResult(place.weights, record, run=place.run)


def _measure_best(training: Training, source: ImageSource, device: torch.device) -> dict[str, Any]:
    """Accuracies of the weights that were best on the validation images; the module has the last ones again."""
    epoch, state = training.best_epoch, training.best_state
    assert epoch is not None and state is not None
    last = copy_state(training.module)
    training.module.load_state_dict(state)
    best = {"epoch": epoch, "validation": training.history[epoch]["validation_accuracy"]}
    if source.test is not None:
        best["test"] = accuracy(training.module, source.test, torch.arange(len(source.test)), device)
    training.module.load_state_dict(last)
    return best


def _completed(options: TrainOptions) -> tuple[TrainOptions, Recipe]:
    """The options with values from the zoo or the defaults where they say nothing; the recipe.

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
    for name in (*DEFAULTS, "schedule"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    options = replace(options, data=data, **{name: values[name] for name in DEFAULTS})
    if (settings := options.repr_settings()) is not None:
        options = replace(options, **{name: getattr(settings, name) for name in REPR_OPTIONS})
    if values.get("schedule") == "milestones":
        half, epochs = values["epochs"] // 2, values["epochs"]
        values["milestones"] = (half, max(half + 1, 3 * epochs // 4))
        if epochs < 3:
            whose = "milestones" if options.schedule else f"milestones, as the recipe of {options.model} has them,"
            fix = "give more epochs or --schedule cosine"
            raise UsageError("--schedule", f"{whose} need at least 3 epochs", got=epochs, fix=fix)
    return options, Recipe(**values, seed=options.seed)


@dataclass(frozen=True)
class _Opened:
    """Images, a network for them, and what is done to the network while it is trained, where something is."""

    source: ImageSource
    module: nn.Module
    scheme: RePr | None
    sparse: SparseTraining | None


def _open(options: TrainOptions) -> _Opened:
    """The network has seeded random weights (a factory's weights are as it returned them)."""
    model, data = options.model, options.data
    assert data is not None  # the options are complete
    source = open_source(data, spread=spread)
    if not source.train.has_labels:
        raise UsageError(data, "training needs images with labels", got="a source without labels")
    if source.n_classes is None:  # a data set that does not list its labels
        labels = source.train.labels(torch.arange(len(source.train)))
        assert labels is not None
        source.n_classes = int(labels.max()) + 1
    # A network of the zoo is built for the images; for another network the images are resized.
    shape = zoo.shape_for(model[4:], data, source.input_shape) if model.startswith("zoo:") else source.input_shape[1:]
    weights_seed = seeds.derive_seed(options.seed, "train", "weights")
    loaded = load_model(model, weights="random", input_size=shape, n_classes=source.n_classes, seed=weights_seed)
    if loaded.input_shape != source.input_shape:
        source = open_source(data, input_shape=loaded.input_shape, spread=spread)
    settings, scheme = options.repr_settings(), None
    if settings is not None:
        scheme = make_scheme(loaded.module, source.input_shape, settings, REPR_OPTIONS)
    sparse = None
    if options.sparsity is not None:
        start_scales(loaded.module)
        with said_for_options("sparsity"):
            penalty = ScalePenalty(loaded.module, source.input_shape, options.sparsity)
        sparse = SparseTraining(penalty, options.proximal)
    return _Opened(source, loaded.module, scheme, sparse)


def _fit(
    opened: _Opened,
    recipe: Recipe,
    place: Place,
    options: TrainOptions,
    device: torch.device,
    memory: int | None,
    reporter: Reporter,
) -> tuple[Training, ReprHooks | None, dict[str, int]]:
    """Train on all but the held-out images; returns also the number of images of each kind."""
    source = opened.source
    trained_on, held_out = hold_out(len(source.train), recipe.seed)
    size = min(recipe.batch_size, len(trained_on))
    limits = announced_limits(
        opened.module.to(device), torch.zeros(1, *source.input_shape), batch_size=size, device=device,
        memory=memory, statistics=True, checkpoint=place.checkpoint, start_over=place.start_over, reporter=reporter,
    )  # fmt: skip

    def measure(network: nn.Module) -> float:
        return accuracy(network, source.train, held_out, device, limits.validated)

    def batches(order: torch.Tensor, size: int, augment: int, places: slice | None = None) -> Batches:
        order, size = places_of(order, size, places)
        return source.train.batches(trained_on[order], size, augment_seed=augment)

    def validate(network: nn.Module) -> dict[str, float]:
        return {"score": (value := measure(network)), "validation_accuracy": value}

    scheme = None if opened.scheme is None else ReprHooks(opened.scheme, measure, len(held_out), reporter)
    files = None if place.run is None else training_files(place.weights.parent, scheme)
    if (sparse := opened.sparse) is not None:
        sparse.announce(recipe, len(trained_on), reporter)
    training = fit(
        opened.module, recipe, stage="train", n_images=len(trained_on), batches=batches, loss=classification_loss,
        validate=validate, n_validation=len(held_out), keep_best=place.run is not None, checkpoint=place.checkpoint,
        start_over=place.start_over, identity={**identity(options), "limits": limits.to_json()},
        n_parts=parts_of(size, limits), device=device, reporter=reporter,
        precision=precision_for(options.precision, opened.module, recipe, {"device": device}, None, {}, reporter),
        hooks=[
            *([] if sparse is None else [sparse.hooks()]),
            # Last, so that nothing moves what it holds.
            *([] if scheme is None else [Hooks.of(scheme, options.scheme)]),
            *([] if files is None else [Hooks(after_save=files)]),
        ],
    )  # fmt: skip
    if files is not None:
        files.close()
    return training, scheme, {"train": len(trained_on), "validation": len(held_out), "test": len(source.test or ())}
