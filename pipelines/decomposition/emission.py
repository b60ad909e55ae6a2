"""Emission of a compressed network: written as files, read back, and tried in the class of the original."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import fx, nn

from decomp.allocation.plan import Plan
from decomp.cost.count import Cost, cost
from decomp.graph.network_graph import NetworkGraph

from ...data.formats import network_file
from ..console.reporter import Reporter
from ..run import loading
from ..run.conditions import freeze_options
from .session import OpenedRun

#: Share of the counted multiply-accumulates above which work that nobody uses is told.
LEAST_EXTRA = 0.01


def emit(
    opened: OpenedRun,
    network: nn.Module,
    folder: Path,
    *,
    edited: Iterable[str],
    meta: Mapping[str, Any],
    original: nn.Module | None,
) -> network_file.Verified:
    """Write a network that was made from that of a run, and try whether the class of the original takes it.

    Parameters
    ----------
    opened : OpenedRun
    network : torch.fx.GraphModule
        On the CPU.
    folder : Path
        To write.
    edited : iterable of str
        Paths of the modules that were exchanged after freeze.
    meta : mapping
        Plain data about the network.
    original : torch.nn.Module or None
        An instance of the original class; None to build one by the name of the model.

    Returns
    -------
    network_file.Verified

    Raises
    ------
    DecompError
        The network cannot be written as data, or does not come back from its files.
    """
    run, source = opened.run, opened.frozen.meta
    structure = network_file.read_structure(run.original_dir)
    before = [edit["module"] for edit in structure["edits"]]
    there = dict(network.named_modules(remove_duplicate=False))
    pairs = [pair for pair in structure["meta"].get("normalised", []) if pair[0] in there]
    meta = {**meta, "normalised": pairs}
    meta |= {"dtype": source["dtype"]} if source.get("dtype") else {}
    channels, height, width = opened.graph.input_shape
    assert isinstance(network, fx.GraphModule)
    network_file.save(
        network, folder, edited=list(dict.fromkeys([*before, *edited])), input_shape=(channels, height, width),
        meta=meta, part=source.get("part"), leaves=source.get("leaves") or (),
    )  # fmt: skip

    def original_class() -> nn.Module:
        if original is not None:
            return original
        shape, n_classes = source["input_shape"], source["n_classes"]
        return loading.original_class(freeze_options(run), input_shape=shape, n_classes=n_classes)

    return network_file.verify_into_original(folder, original_class)


def unused_work(network: nn.Module, path: Path) -> str:
    """A line about multiply-accumulates of a network in its class that the traced network does without, or ''.

    A branch whose result nobody uses is not traced and not counted, and the class computes it all the same.

    Parameters
    ----------
    network : torch.nn.Module
        In the class of the original.
    path : Path
        The network directory that it was made from.
    """
    structure = network_file.read_structure(path)
    if structure.get("part"):
        return ""
    channels, height, width = structure["input_shape"]
    counted = cost(network_file.load(path, leaves_of=network), (channels, height, width)).macs
    extra = cost(network, (channels, height, width)).macs - counted
    if extra <= LEAST_EXTRA * counted:
        return ""
    return (
        f"its class also computes {extra / 1e6:,.2f} M multiply-accumulates whose result nobody uses; they "
        "are not in the count: leave that branch out of its forward, or take the traced network, which does without"
    )


def checked_cost(plan: Plan, graph: NetworkGraph, reporter: Reporter) -> Cost:
    """Cost of the compressed network, with a warning where it is not the planned one."""
    after = cost(graph.module, graph.input_shape)
    counts = (("multiply-accumulates", plan.macs_after, after.macs), ("parameters", plan.params_after, after.params))
    for unit, planned, got in counts:
        if got != planned:
            reporter.warn(f"the plan counted {planned:,} {unit}, the network has {got:,}; please report this")
    return after
