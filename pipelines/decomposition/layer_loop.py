"""Layer loop: solve each layer in execution order, write it, read it back, apply it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from decomp import seeds
from decomp.allocation.plan import Plan
from decomp.graph.layer import Layer
from decomp.solvers.solve_layer import FitSettings

from ...data.formats.digests import digest_file
from ...data.formats.layer_file import read_layer, write_layer
from ..console.reporter import Reporter
from ..distributed.own_copy import take_file
from ..distributed.process_group import from_first
from ..run.directory import RunDirectory
from .channel_scores import channel_scores
from .fit_layer import exchange_layer, fit_layer
from .gather import ProblemGatherer
from .layer_reports import layer_words


@dataclass
class SolvedLayers:
    """Result of the layer loop.

    Attributes
    ----------
    reports : list of dict
        Report of each solved layer, in execution order.
    edited : list of str
        Paths of the modules that were exchanged.
    columns : dict of str to torch.LongTensor
        For each node whose value lost channels in the loop, those that stayed.
    digest : str
        Of the last layer's file, which names its predecessor, and so on.
    blocks : dict
        Report of the blocks that were refined afterwards, see :mod:`decomp.pipelines.decomposition.refine_blocks`.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    columns: dict[str, Tensor] = field(default_factory=dict)
    digest: str = ""
    blocks: dict[str, Any] = field(default_factory=dict)


def solve_layers(
    run: RunDirectory,
    plan: Plan,
    gatherer: ProblemGatherer,
    parent: str,
    settings: FitSettings,
    *,
    reporter: Reporter,
    scores: Mapping[str, Tensor] | None = None,
) -> SolvedLayers:
    """Solve the layers that are not committed yet, and apply all of them to the gatherer's network in order.

    Parameters
    ----------
    run : RunDirectory
        One file a layer is committed to it.
    plan : decomp.allocation.plan.Plan
    gatherer : ProblemGatherer
    parent : str
        Digest of all that the first layer is made from; each file carries the digest of its predecessor.
    settings : decomp.solvers.solve_layer.FitSettings
        Each layer gets a seed and scores of its own. The selector may be a criterion of
        :data:`decomp.criteria.names.AS_SELECTORS`.
    reporter : decomp.pipelines.console.reporter.Reporter
    scores : mapping of str to torch.Tensor, optional
        Numbers of the input channels of layers, with the selector as their name, where these are known; layers without
        some are solved with the selector 'best'.

    Raises
    ------
    FileError
        A committed layer is damaged or made from something else.
    """
    graph, result = gatherer.graph, SolvedLayers()
    seed, selector = gatherer.frozen.meta["seed"], settings.selector
    pruned = [layer.name for layer in graph.layers if layer.fitted and plan.layer(layer.name).keep is not None]
    if scores is None:
        scores = from_first(lambda: channel_scores(gatherer, selector, pruned))
    else:
        pruned = [name for name in pruned if name in scores]
    work = [_work(layer, plan, run) for layer in graph.layers]
    with reporter.progress(len(graph.layers), "fit", "layers", work=work) as progress:
        for layer in graph.layers:
            if not layer.recorded:
                progress.update(1)
                continue
            progress.begin(layer.name)
            sizes, path = plan.layer(layer.name), run.layer_file(layer.index, layer.name)
            if path.is_file():
                gatherer.replay.advance(graph.node(layer))
                solution, report = read_layer(path, parent, layer.name)
            else:
                own = replace(
                    # A layer that keeps all its input channels needs none; one without numbers takes the default.
                    settings, selector=selector if layer.name in pruned else "best",
                    seed=seeds.derive_seed(seed, "decompose", layer.name), scores=scores.get(layer.name),
                )  # fmt: skip
                solution, report = fit_layer(gatherer, layer, sizes, own)
                write_layer(path, solution, report, parent)
                take_file(path)
                # Applied as read, like in a resumed run: the bytes of both are the same.
                solution, report = read_layer(path, parent, layer.name)
                reporter.detail(layer_words(layer, sizes, report), layer=layer.name, errors=report["errors"])
            parent = digest_file(path)
            exchanged, columns = exchange_layer(gatherer, solution)
            result.edited += [name for name in exchanged if name not in result.edited]
            for node, stay in columns.items():
                before = result.columns.get(node.name)
                result.columns[node.name] = stay if before is None else before[stay]
            result.reports.append(report)
            progress.update(1)
    result.digest = parent
    return result


def _work(layer: Layer, plan: Plan, run: RunDirectory) -> float:
    """Expected work of a layer for the time left: roughly as its columns, a tenth where only its weights are fitted."""
    if not layer.recorded or run.layer_file(layer.index, layer.name).is_file():
        return 0.0
    return layer.columns if plan.layer(layer.name).treated else layer.columns / 10
