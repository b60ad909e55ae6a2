"""Channel selection in a pruning by scale factors: branches that read fewer channels of a stream than there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import fx

from decomp.criteria.scale_factors import scaled_channels
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.selections import NORM, SELECT, insert_selections, remove_selections
from decomp.modules.copies import deep_copy
from decomp.modules.select import Select

from ..console.prune_options import PruneOptions
from .plan_file import PruningPlan
from .unfolded import Unfolded


def with_selections(source: Unfolded, options: PruneOptions, given: PruningPlan | None) -> tuple[Unfolded, list[str]]:
    """A network with selections of all channels where the options, or a plan, may select some.

    Parameters
    ----------
    source : Unfolded
        Not changed.
    options : PruneOptions
    given : PruningPlan, optional
        A plan that decides the channels.

    Returns
    -------
    source : Unfolded
        The same where there is nothing to select.
    paths : list of str
        Of the normalisations with a selection before them.
    """
    shape = source.graph.input_shape
    if given is not None:
        modules = dict(source.network.named_modules())
        named = [name.removesuffix(f".{SELECT}") for name in given.keep if name.endswith(f".{SELECT}")]
        paths = [path for path in named if path in modules and not isinstance(modules.get(f"{path}.{SELECT}"), Select)]
        if not paths:
            return source, []
        network = deep_copy(source.network)
        insert_selections(network, paths)
        return replace(source, network=network, graph=NetworkGraph(network, shape, source.graph.name)), paths
    if options.criterion != "bn-scale" or options.coupled:
        return source, []
    found = scaled_channels(source.network, shape)
    paths = [entry.path for entry in found.factors if entry.how == "select"]
    return (replace(source, network=found.network, graph=found.graph), paths) if paths else (source, [])


def without_full_selections(network: fx.GraphModule, paths: Sequence[str], changed: Iterable[str]) -> list[str]:
    """Remove selections that still pass all channels on, in place.

    Parameters
    ----------
    network : torch.fx.GraphModule
    paths : sequence of str
        As :func:`with_selections` returns them.
    changed : iterable of str
        Paths of modules that were exchanged since.

    Returns
    -------
    list of str
        The paths of `changed` as the original network has them.
    """
    full = []
    for path in paths:
        select = network.get_submodule(f"{path}.{SELECT}")
        assert isinstance(select, Select)
        full += [path] if select.keeps_all else []
    remove_selections(network, full)
    return as_before(paths, changed)


def as_before(paths: Sequence[str], changed: Iterable[str]) -> list[str]:
    """Paths as the network has them without selections before the normalisations at `paths`."""
    owner = {f"{path}.{part}": path for path in paths for part in (SELECT, NORM)}
    return list(dict.fromkeys(owner.get(path, path) for path in changed))
