"""The original network of a run before its batch normalisations were folded: loaded again as freeze loaded it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from decomp.errors import DecompError, UsageError
from decomp.execution.outputs import difference
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.modules.copies import deep_copy
from decomp.surgery.batchnorm import fold_bn

from ...data import models
from ...data.formats.network_file import read_structure
from ...data.plain_network import plain_copy
from ...data.weights import digest_state_dict
from ..console.options import FreezeOptions
from ..console.program import program
from ..run.conditions import freeze_options
from ..run.directory import RunDirectory
from ..run.loading import load_network, part_of
from ..run.trained import weights_file

#: Largest difference to the original of the run, relative to the largest output.
TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Unfolded:
    """A traced network with its batch normalisations.

    Attributes
    ----------
    network : torch.fx.GraphModule
        A copy of its own: what is put in does not reach the caller's network.
    graph : decomp.graph.network_graph.NetworkGraph
        Of this network.
    normalised : tuple of (str, str)
        Paths of the layers, and of the batch normalisations that can be folded into them.
    built : torch.nn.Module
        An instance of the class of the network (of the bigger model that it is a part of), with its weights.
    """

    network: fx.GraphModule
    graph: NetworkGraph
    normalised: tuple[tuple[str, str], ...]
    built: nn.Module


def unfolded(
    built: nn.Module, name: str, shape: Sequence[int], *, part: str | None = None, leaves: Sequence[str] = ()
) -> Unfolded:
    """A network in memory, traced.

    Parameters
    ----------
    built : torch.nn.Module
        In float32 on the CPU; it is not changed.
    name : str
        For messages.
    shape : sequence of int
        (C, H, W) of an image.
    part : str, optional
        Path of the submodule that takes the images.
    leaves : sequence of str
        Paths of modules that are not traced.

    Raises
    ------
    TraceError, UsageError
        It cannot be traced, or does not take images of this shape.
    """
    network = trace(part_of(built, part, name), name, leaves, tuple(shape))
    pairs = fold_bn(deep_copy(network))
    return Unfolded(network, NetworkGraph(network, shape, name), tuple(pairs), built)


def folded_copy(network: fx.GraphModule) -> fx.GraphModule:
    """A copy of a traced network with its batch normalisations folded."""
    copy = deep_copy(network).eval()
    fold_bn(copy)
    return copy


def unfolded_of_run(run: RunDirectory) -> Unfolded:
    """The network that was frozen in a run.

    Parameters
    ----------
    run : RunDirectory
        Frozen. Its ``original`` is used for a network that was given in memory.

    Raises
    ------
    DecompError
        The file or the function that gave the network is gone, or gives another network now.
    """
    options, record = freeze_options(run), run.config("freeze") or {}
    original = load_network(run, run.original_dir)
    shape = read_structure(run.original_dir)["input_shape"]
    built, digest = _loaded(run, options, shape)
    if digest != record["weights_digest"]:
        raise UsageError(
            run.path, f"was frozen with other weights of {options.model}, of digest {record['weights_digest'][:12]}",
            got=digest[:12], fix="put these weights back, or give another --run for the new ones",
        )  # fmt: skip
    found = unfolded(built, options.model, shape, part=options.part, leaves=options.leaves)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        off = difference(original(images), folded_copy(found.network)(images))
    if not off <= TOLERANCE:
        rule = f"the network {options.model} must be the one that was frozen, which gives other outputs"
        raise DecompError(run.path, rule, got=f"a difference of {off:.2g}", fix="freeze it into another --run")
    return found


def _loaded(run: RunDirectory, options: FreezeOptions, shape: Sequence[int]) -> tuple[nn.Module, str]:
    """The network by its recorded name and weights, or the one in memory, and its digest."""
    if run.original is not None:
        built = plain_copy(run.original, options.model)
        return built, digest_state_dict(built.state_dict())
    if options.model.endswith(models.MEMORY):
        raise UsageError(
            run.path, f"holds {options.model}, which only the Python session that froze it can prune",
            fix=f"call decomp.prune_run({str(run.path)!r}, original=model, speedup=2) with that network as model",
        )  # fmt: skip
    try:
        weights = weights_file(run, options.weights)
        loaded = models.load_model(options.model, weights=weights, input_size=options.input_size or shape)
    except DecompError as error:
        rule = f"the network as it was frozen is needed, with its batch normalisations ({str(error).rstrip('.')})"
        fix = f"put {options.weights or options.model} back, or freeze with `{program()} freeze` into another --run"
        raise DecompError(run.path, rule, fix=fix) from error
    return loaded.module, loaded.weights_digest
