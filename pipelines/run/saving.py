"""Networks in memory: the record of their structure that goes with them, and saving them as a network directory."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from decomp.errors import DecompError, FileError, UsageError, kind_of
from decomp.graph.serialise import build_graph, describe_module

from ...data.formats import network_file
from ...data.plain_network import unwrapped

#: Name of the record on a module. It is plain data, so that a network with it can be copied and pickled.
RECORD = "_decomp_structure"


def attach_record(network: nn.Module, structure: Mapping[str, Any]) -> nn.Module:
    """Put the structure of a network's files on it, from which :func:`save` knows its graph and its edits.

    Parameters
    ----------
    network : torch.nn.Module
        The network, or the bigger model that it is a part of.
    structure : mapping
        As :func:`decomp.data.formats.network_file.read_structure` gives it.

    Returns
    -------
    torch.nn.Module
        The one that has the record: the part, or the network.
    """
    part = structure.get("part")
    holder = network.get_submodule(part) if part and part in dict(network.named_modules()) else network
    setattr(holder, RECORD, dict(structure))
    if isinstance(holder, fx.GraphModule):
        holder.meta[RECORD] = dict(structure)  # a copy of a traced network keeps this, an unpickled one the attribute
    return holder


def record_of(network: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The module of a network that decomp made, itself or a part of it, and its record.

    Raises
    ------
    UsageError
        Neither the network nor a part of it was made by decomp.
    """
    for module in network.modules():
        record = getattr(module, RECORD, None) or getattr(module, "meta", {}).get(RECORD)
        if record is not None:
            return module, record
    if isinstance(network, fx.GraphModule):
        return network, {"edits": [], "input_shape": None, "part": None, "meta": {}, "graph": {"modules": {}}}
    raise UsageError(
        "network", "must be a network that decomp.compress or decomp.load returned", got=kind_of(network),
        fix="keep others with torch.save(network.state_dict(), FILE), or compress this one first",
    )  # fmt: skip


def save(network: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Save a network that decomp made, with its present weights, for :func:`decomp.load`.

    Parameters
    ----------
    network : torch.nn.Module
        From :func:`decomp.compress`, :func:`decomp.load` or :func:`decomp.trainable`, or one that has such a network
        as a part, of which the part is saved.
    path : path
        The folder to write. An earlier saved network there is replaced once the new one is whole.

    Returns
    -------
    Path
        Of the folder: ``decomp.load(path)`` gives the network standing alone, ``decomp.load(path, into=model)`` puts it
        into an instance of the original class.

    Raises
    ------
    UsageError
        The network was not made by decomp.
    FileError
        At the path is something else than a saved network, or a network of a run.
    DecompError
        A module was exchanged for one that cannot be written as data.

    Examples
    --------
    >>> decomp.save(network, "compressed")  # doctest: +SKIP
    >>> network = decomp.load("compressed", into=MyNetwork())  # doctest: +SKIP
    """
    if not isinstance(network, nn.Module):
        raise UsageError("network", "must be a torch.nn.Module", got=kind_of(network))
    module, record = record_of(unwrapped(network))
    folder = Path(os.fspath(path))
    _check_place(folder)
    leaves = network_file.leaves(record)
    traced = copy.deepcopy(module) if isinstance(module, fx.GraphModule) else _traced(module, record, leaves)
    traced = traced.eval().cpu().to(memory_format=torch.contiguous_format)
    then = record["graph"]["modules"]
    changed = [name for name in then if name not in leaves and _description(traced, name) != then[name]]
    edited = dict.fromkeys([*(edit["module"] for edit in record["edits"]), *changed])
    meta = {key: value for key, value in record["meta"].items() if key != "dtype"}  # that of the present weights
    return network_file.save(
        traced, folder, edited=edited, input_shape=record["input_shape"], meta=meta, part=record["part"],
        leaves=leaves,
    )  # fmt: skip


def _check_place(folder: Path) -> None:
    """Refuse a path whose content is something else than a saved network."""
    if (folder.parent / "run.json").is_file() or (folder / "run.json").is_file():
        raise FileError(folder, "belongs to a run, whose networks its stages write", fix="give a path outside the run")
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        try:
            network_file.read_structure(folder)
        except FileError as error:
            fix = "give another path, or remove it"
            raise FileError(folder, "is there already, and is not a saved network", fix=fix) from error


def _traced(module: nn.Module, record: Mapping[str, Any], leaves: list[str]) -> fx.GraphModule:
    """The traced network with the present modules and weights of one in its original class."""
    modules = {
        name: spec if name in leaves else _description(module, name)
        for name, spec in record["graph"]["modules"].items()
    }  # fmt: skip
    graph = {**record["graph"], "modules": modules}
    within = tuple(f"{name}." for name in modules)
    state: dict[str, Tensor] = {
        name: value for name, value in module.state_dict().items()
        if name.startswith(within) or name in graph["tensors"]
    }  # fmt: skip
    for name in graph["tensors"].keys() - state.keys():  # no weights: constants of the code, buffers without state
        holder, _, attribute = name.rpartition(".")
        state[name] = getattr(module.get_submodule(holder), attribute)
    traced = build_graph(graph, state, type(module).__name__, module)
    traced.meta.update(forwards=network_file.forwards(record), left_out=network_file.left_out(record))
    return traced


def _description(module: nn.Module, name: str) -> dict[str, Any]:
    try:
        return describe_module(module.get_submodule(name), name)
    except AttributeError as error:
        fix = "save the network as decomp returned it"
        raise DecompError(name, "the module of this name is no longer in the network", fix=fix) from error
    except DecompError as error:
        fix = "keep it with torch.save(network, FILE)"
        raise DecompError(error.thing, error.rule, got=error.got, fix=fix) from error
