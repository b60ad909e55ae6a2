"""Load the networks and the frozen points of a run, checked to belong together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from decomp.errors import FileError, MissingError, UsageError, kind_of
from decomp.execution.output_change import Outputs

from ...data import models
from ...data.formats import network_file
from ...data.formats.digests import digest_file
from ...data.formats.frozen_file import FrozenFile
from ..console.options import FreezeOptions
from ..console.reporter import Reporter
from .begun import compressing_command
from .conditions import recorded_options
from .directory import RunDirectory
from .networks import NETWORKS
from .outputs import frozen_outputs, measured_outputs, read_outputs
from .saving import attach_record


def open_frozen(run: str | os.PathLike[str] | RunDirectory) -> tuple[FrozenFile, fx.GraphModule]:
    """The frozen file of a run and its original network, checked to belong together.

    Parameters
    ----------
    run : path or RunDirectory

    Returns
    -------
    frozen : FrozenFile
    original : torch.fx.GraphModule

    Raises
    ------
    FileError
        Either is missing, or one does not belong to the other or to run.json.
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
    if "outputs" not in frozen.meta:  # frozen by an earlier version
        frozen.meta["outputs"] = measured_outputs(original, frozen).to_json()
    return frozen, original


def run_outputs(run: RunDirectory) -> Outputs:
    """The outputs of the network of a run.

    Raises
    ------
    FileError
        Their description is broken.
    """
    record = (run.config("freeze") or {}).get("outputs")
    if record is not None:
        return read_outputs(record, run.run_json)
    frozen, _ = open_frozen(run)
    with frozen:
        return frozen_outputs(frozen)


def load(
    path: str | os.PathLike[str], into: nn.Module | None = None, *, leaves_of: nn.Module | None = None
) -> nn.Module:
    """Rebuild a network that was written by a stage.

    Parameters
    ----------
    path : path
        A run directory, which means its most advanced network, or the folder of one network (``runs/vgg/model``).
    into : torch.nn.Module, optional
        An instance of the original class, with any weights. A copy of it gets the edits and the weights; of a
        network that is a part of a bigger model, give the bigger model or the part. Without it the result is a
        traced network that does not need the original class.
    leaves_of : torch.nn.Module, optional
        For a traced network: an instance of the original class, from which modules that were not traced
        (``freeze --leaf``) are taken.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the CPU.

    Raises
    ------
    FileError
        The files are missing, broken, or do not fit the given module.
    """
    if into is not None and not isinstance(into, nn.Module):
        got, fix = kind_of(into), "give an instance, such as build()"
        raise UsageError("into", "must be a module of the original class", got=got, fix=fix)
    folder = Path(os.fspath(path))
    if not folder.exists():
        raise MissingError(folder, "there is no such network or run directory", fix="give for example runs/mine/model")
    if (folder / "structure.json").is_file() or not (folder / "run.json").is_file():
        return _with_record(folder, into, leaves_of)
    run = RunDirectory(folder)
    made = next((network for network in reversed(NETWORKS) if network.made_from and network.exists(run)), None)
    if made is None:
        fix = f"run: {compressing_command(run)}"
        raise FileError(folder, "this run holds no compressed network yet", fix=fix)
    return _with_record(made.path(run), into, leaves_of)


def _with_record(path: Path, into: nn.Module | None, leaves_of: nn.Module | None) -> nn.Module:
    """The network in its own precision, with the record from which it can be saved."""
    network, structure = network_file.load(path, into, leaves_of=leaves_of), network_file.read_structure(path)
    in_own_precision(attach_record(network, structure), structure)
    return network


def in_own_precision(network: nn.Module, structure: Mapping[str, Any]) -> nn.Module:
    """The network in the precision in which its original came, in place; the stages work in float32."""
    name = structure["meta"].get("dtype")
    return network if name is None else network.to(getattr(torch, name))


def load_network(run: RunDirectory, path: Path) -> fx.GraphModule:
    """A network of a run that does not need its original class.

    Modules that were not traced (``freeze --leaf``) are taken from the original class.

    Parameters
    ----------
    run : RunDirectory
    path : Path
        One of its networks: ``run.original_dir``, ``run.model_dir``, ...
    """
    options = recorded_options(run, "freeze", FreezeOptions)
    leaves_of = None
    if options is not None and options.leaves:
        in_memory = run.original is not None
        leaves_of = part_of(run.original, options.part, options.model) if in_memory else original_part(options)
    network = network_file.load(path, leaves_of=leaves_of)
    assert isinstance(network, fx.GraphModule)  # what load() gives without `into`
    return network


def warn_of_other_versions(run: RunDirectory, stage: str, reporter: Reporter) -> None:
    """Report libraries whose versions differ from those that an earlier stage ran with: results may differ a little."""
    changes = run.version_changes(stage)
    if changes:
        reporter.warn(f"{stage} ran with other versions: {', '.join(changes)}; numbers may differ a little")


def original_class(
    options: FreezeOptions, *, input_shape: Sequence[int] | None = None, n_classes: int | None = None
) -> nn.Module:
    """An instance of the class that was frozen, with weights that do not matter.

    Parameters
    ----------
    options : FreezeOptions
    input_shape : sequence of int, optional
        (C, H, W), for where the options do not give it: the weights' file may have.
    n_classes : int, optional
        As frozen.
    """
    size = options.input_size or input_shape
    return models.load_model(options.model, weights="random", input_size=size, n_classes=n_classes).module


def original_part(options: FreezeOptions) -> nn.Module:
    """The part of the original class that was frozen, or the whole."""
    return part_of(original_class(options), options.part, options.model)


def part_of(module: nn.Module, part: str | None, name: str) -> nn.Module:
    """A submodule by its path; the module itself where no path is given.

    Parameters
    ----------
    module : torch.nn.Module
    part : str or None
    name : str
        Of the model, for the message.

    Raises
    ------
    UsageError
        There is none of this name; lists the submodules.
    """
    if not part:
        return module
    try:
        return module.get_submodule(part)
    except AttributeError as error:
        there = ", ".join(child for child, _ in module.named_children())
        raise UsageError("--module", f"{name} has no part of this name, it has {there}", got=part) from error
