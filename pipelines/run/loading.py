"""Load the networks and the frozen points of a run, checked to belong together."""

import os
from pathlib import Path

from decomp.errors import FileError, UsageError

from ...data import models
from ...data.formats import network_file
from ...data.formats.digests import digest_file
from ...data.formats.frozen_file import FrozenFile
from ..console.program import program
from .directory import RunDirectory
from .networks import existing


def open_frozen(run):
    """The frozen file of a run and its original network, checked to belong together.

    Returns
    -------
    frozen : FrozenFile
    original : torch.fx.GraphModule
    """
    run = RunDirectory.open(run)
    if not run.frozen.is_file():
        raise FileError(run.frozen, "is missing", fix=f"run freeze into {run.path} first")
    original = load_network(run, run.original_dir)
    frozen = FrozenFile(run.frozen)
    run.refuse_own_code({"model": frozen.model_name, "data": frozen.source_name})
    digest = digest_file(run.original_dir / "structure.json")
    if frozen.meta.get("network") != digest:
        raise FileError(
            run.frozen, f"was frozen from the network {str(frozen.meta.get('network'))[:12]}", got=digest[:12],
            fix="run freeze again into another directory",
        )  # fmt: skip
    recorded = (run.config("freeze") or {}).get("frozen", frozen.content)
    if recorded != frozen.content:
        raise FileError(
            run.frozen, f"must be the points {recorded[:12]} that run.json names", got=frozen.content[:12],
            fix="put the file back, or run freeze again into another directory",
        )  # fmt: skip
    return frozen, original


def load(path, into=None):
    """Rebuild a network that was written by a stage.

    Parameters
    ----------
    path : path
        A run directory, which means its most advanced network, or the folder of one network (``runs/vgg/model``).
    into : torch.nn.Module, optional
        An instance of the original class, with any weights. A copy of it gets the edits and the weights; of a
        network that is a part of a bigger model, give the bigger model or the part. Without it the result is a
        traced network that does not need the original class.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the CPU.

    Raises
    ------
    FileError
        The files are missing, broken, or do not fit the given module.
    """
    folder = Path(os.fspath(path))
    if (folder / "structure.json").is_file() or not (folder / "run.json").is_file():
        return network_file.load(folder, into)
    run = RunDirectory(folder)
    made = [network for network in existing(run) if network.made_from is not None]
    if not made:
        fix = f"run: {program()} decompose --run {folder} --speedup 4x"
        raise FileError(folder, "this run holds no compressed network yet", fix=fix)
    return network_file.load(made[-1].path(run), into)


def load_network(run, path):
    """A network of a run, which stands alone; modules that were left out of the trace come from its original class.

    Parameters
    ----------
    run : RunDirectory
    path : Path
        One of its networks: ``run.original_dir``, ``run.model_dir``, ...

    Returns
    -------
    torch.fx.GraphModule
    """
    asked = (run.config("freeze") or {}).get("asked") or {}
    return network_file.load(path, leaves_of=original_part(asked) if asked.get("leaves") else None)


def warn_of_other_versions(run, stage, reporter):
    """Say which libraries are not the ones that an earlier stage ran with; equal bytes are no longer to be expected."""
    changes = run.version_changes(stage)
    if changes:
        reporter.warn(f"{stage} ran with other versions: {', '.join(changes)}; numbers may differ a little")


def original_class(asked):
    """An instance of the class that was frozen; its weights do not matter, all of them are put in.

    Parameters
    ----------
    asked : dict
        What freeze was asked for, model, input_size and part; with what it found, input_shape and n_classes.
    """
    size = asked["input_size"] or asked.get("input_shape")  # weights may have told it, where nobody gave it
    options = {"input_size": size, "n_classes": asked.get("n_classes")}
    return models.load_model(asked["model"], weights="random", **options).module


def original_part(asked):
    """The part of it that was frozen, or the whole."""
    return part_of(original_class(asked), asked.get("part"), asked["model"])


def require_whole(run):
    """Refuse what needs class scores where only a part of a network was treated."""
    part = ((run.config("freeze") or {}).get("asked") or {}).get("part")
    if part:
        raise UsageError(
            run.path, f"holds a part of a network ({part}), which gives no class scores",
            fix=f"put it back with decomp.load({str(run.model_dir)!r}, into=model) and train or judge the whole",
        )  # fmt: skip


def part_of(module, part, name):
    """A submodule by its path; the module itself where no path is given.

    Raises
    ------
    UsageError
        There is none of this name; says what there is.
    """
    if not part:
        return module
    try:
        return module.get_submodule(part)
    except AttributeError as error:
        there = ", ".join(child for child, _ in module.named_children())
        raise UsageError("--module", f"{name} has no part of this name, it has {there}", got=part) from error
