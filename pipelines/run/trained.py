"""Weights that were trained in a run directory, as the inputs of the stages after ``train --run``."""

from __future__ import annotations

from pathlib import Path

from decomp.errors import FileError, UsageError

from ..console.options import TrainOptions
from .conditions import recorded_options
from .directory import RunDirectory

#: Path of the weights inside the run, and their name in records, so that a run can be moved.
WEIGHTS = "trained/weights.safetensors"
#: Stages that read the trained weights.
READERS = ("freeze", "prune")


def trained_options(run: RunDirectory) -> TrainOptions | None:
    """The options of a finished ``train --run``, all of them with a value; None where the run has no such training.

    Raises
    ------
    FileError
        The record cannot be read, or its weights are not there.
    """
    options = recorded_options(run, "train", TrainOptions) if run.run_json.is_file() else None
    if options is not None and not run.trained_weights.is_file():
        fix = f"put the file back, or repeat the training with train --run {run.path} --redo"
        raise FileError(run.trained_weights, "the weights that run.json records are missing", fix=fix)
    return options


def inputs(run: RunDirectory, model: str | None, data: str | None, weights: str | None) -> tuple[str, str, str | None]:
    """Network, images and weights of a stage; those of the training in the run where they are not given.

    Parameters
    ----------
    run : RunDirectory
        Need not exist.
    model, data, weights : str or None
        As given to the stage.

    Returns
    -------
    model, data : str
    weights : str or None
        As the stage records them; as given for a run without training. :func:`weights_file` finds the weights.

    Raises
    ------
    UsageError
        Another network or other weights are given than those that were trained in the run; or nothing is given, and
        nothing was trained.
    """
    trained = trained_options(run)
    if trained is None:
        if model is None:
            rule = f"a network must be named, since none was trained in {run.path}"
            raise UsageError(
                "--model", rule, fix="give zoo:NAME, torchvision:NAME, timm:NAME or path/to/file.py:factory"
            )
        if data is None:
            raise UsageError("--data", "images must be named", fix="give for example digits or imagefolder:DIR")
        return model, data, weights
    same_file = weights in (None, WEIGHTS) or Path(str(weights)).resolve() == run.trained_weights.resolve()
    if model not in (None, trained.model) or not same_file:
        got = model if model not in (None, trained.model) else weights
        rule = f"holds weights of {trained.model} that were trained in it"
        raise UsageError(run.path, rule, got=got, fix="leave --model and --weights out, or give another --run")
    chosen = data or trained.data
    assert chosen is not None  # the options of a finished training are complete
    return trained.model, chosen, WEIGHTS


def weights_file(run: RunDirectory, weights: str | None) -> str | None:
    """The path of recorded weights, or their name where it is none of a run (``DEFAULT``, ``random``)."""
    return str(run.trained_weights) if weights == WEIGHTS else weights


def require_untouched(run: RunDirectory) -> None:
    """Refuse to train in a run that has results already, which would then be of other weights than it holds.

    Raises
    ------
    UsageError
    """
    made = [stage for stage in READERS if run.config(stage) is not None]
    if made:
        rule = "a network is trained before anything is made from it"
        got = f"a run with the result of {made[0]}"
        raise UsageError(run.path, rule, got=got, fix="give another --run")
