"""Session of a run in three values: opened (frozen points, traced network), narrowed (channel spaces), surveyed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from decomp.cost.count import Cost
from decomp.cost.count import cost as count_cost
from decomp.errors import FileError
from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.shared_spaces import kept_outputs
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import shrink

from ...data.formats.atomic import scratch
from ...data.formats.curves_file import Survey
from ...data.formats.frozen_file import FrozenFile
from ...data.formats.frozen_keys import keys_of, shortcut_key
from ..console.options import DecomposeOptions
from ..console.reporter import Reporter
from ..distributed.process_group import count, gathered
from ..measure.resources import Resources
from ..run.directory import RunDirectory
from ..run.loading import open_frozen
from .gather import ProblemGatherer
from .memory import StageMemory, measure, problem_bytes, row_bytes, set_limits
from .shared_channels import choose_channels
from .survey import survey_network

#: File with the channels that stay in narrowed channel spaces.
SPACES = "spaces.json"


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """Frozen points of a run and a traced copy of its network on a device.

    Attributes
    ----------
    run : decomp.pipelines.run.directory.RunDirectory
    frozen : decomp.data.formats.frozen_file.FrozenFile
    original : torch.nn.Module
        The network as frozen; it is not changed.
    graph : decomp.graph.network_graph.NetworkGraph
        Of the copy; its modules are exchanged in the course of the stage.
    cost : decomp.cost.count.Cost
        Of the original.
    memory : decomp.pipelines.decomposition.memory.StageMemory
    device : torch.device
    """

    run: RunDirectory
    frozen: FrozenFile
    original: nn.Module
    graph: NetworkGraph
    cost: Cost
    memory: StageMemory
    device: torch.device


@dataclass(frozen=True, eq=False)
class NarrowedRun:
    """The copy after whole channel spaces have lost channels, and blocks have gone; as opened where none has.

    Attributes
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    macs_by_layer : dict of str to int
        Multiply-accumulates of this network by module path.
    widths : dict of str to int
        Narrowed channel spaces and their numbers of remaining channels.
    channels : dict of str to list of int
        The remaining channels themselves.
    remaining_outputs : dict of str to torch.LongTensor
        Remaining output channels of the layers that lost some.
    edited : tuple of str
        Paths of the modules that were exchanged.
    left_out : tuple of str
        Residual blocks without which the network goes on, see :mod:`decomp.pipelines.decomposition.left_out`.
    left_out_layers : tuple of str
        Their layers.
    """

    graph: NetworkGraph
    macs_by_layer: Mapping[str, int]
    widths: Mapping[str, int]
    channels: Mapping[str, list[int]]
    remaining_outputs: Mapping[str, Tensor]
    edited: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    left_out_layers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SurveyedRun:
    """All that a plan is made from.

    Attributes
    ----------
    opened : OpenedRun
    narrowed : NarrowedRun
    graph : decomp.graph.network_graph.NetworkGraph
        Of the narrowed network, with or without samplers.
    survey : decomp.data.formats.curves_file.Survey
        Error curves and output metrics of all layers.
    """

    opened: OpenedRun
    narrowed: NarrowedRun
    graph: NetworkGraph
    survey: Survey

    def gatherer(self, options: DecomposeOptions, graph: NetworkGraph | None = None) -> ProblemGatherer:
        """Gathers the problems of the layers, with all that the options fit them to.

        Parameters
        ----------
        options : decomp.pipelines.console.options.DecomposeOptions
        graph : decomp.graph.network_graph.NetworkGraph, optional
            Of a copy of the network, which is then changed in its place.
        """
        opened, metrics = self.opened, self.survey.metrics if options.refine else {}
        return ProblemGatherer(
            opened.frozen, graph or self.graph, metrics=metrics, device=opened.device, recovery=options.recovery,
            remaining_outputs=self.narrowed.remaining_outputs, memory=opened.memory,
        )  # fmt: skip


@contextmanager
def open_run(
    run: RunDirectory | str | os.PathLike[str],
    resources: Resources,
    *,
    start_over: bool = False,
) -> Iterator[OpenedRun]:
    """Open a run for the length of the block.

    Parameters
    ----------
    run : path or RunDirectory
    resources : decomp.pipelines.measure.resources.Resources
        See :func:`decomp.pipelines.decomposition.memory.set_limits`.
    start_over : bool
        Layers that are solved already will be solved anew, so that the limits they were solved with do not matter.

    Raises
    ------
    FileError
        The frozen points are missing, damaged, of another network or of an earlier version.
    UsageError
        The limit of memory is too small.
    """
    run = RunDirectory(run)
    frozen, original = open_frozen(run)
    with frozen, scratch(run.scratch_dir) as folder:
        shape, name = tuple(frozen.meta["input_shape"]), frozen.meta["model"]
        network = trace(original, name, frozen.meta.get("leaves") or ())
        graph = NetworkGraph(network, shape, name, fitting=FittingLimits(frozen.n_images))
        _require_entries(graph, frozen, run)
        cost = count_cost(network, shape)
        network.to(resources.device)
        # Layers that are solved already were fitted within these limits; within others the rest would not have the
        # same bytes.
        solved = run.layers_dir.is_dir() and not start_over
        before = (run.config("decompose") or {}).get("limits") if solved else None
        stage_memory = _stage_memory(graph, frozen, resources, folder, before)
        yield OpenedRun(run, frozen, original, graph, cost, stage_memory, resources.device)


def narrow(
    opened: OpenedRun, widths: Mapping[str, int], *, folder: Path | None = None, reporter: Reporter
) -> NarrowedRun:
    """Narrow whole channel spaces of the traced network.

    Parameters
    ----------
    opened : OpenedRun
        Modules of its graph are exchanged.
    widths : dict of str to int
        Channel space to its number of remaining channels; empty leaves the network as it is.
    folder : Path, optional
        For the choice of the channels; ``layers`` of the run where not given.
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    NarrowedRun
    """
    graph = opened.graph
    if not widths:
        return NarrowedRun(graph, opened.cost.per_layer, {}, {}, {}, ())
    channels = choose_channels(
        (folder or opened.run.layers_dir) / SPACES, widths, opened.frozen, graph,
        device=opened.device, memory=opened.memory, reporter=reporter,
    )  # fmt: skip
    remaining = kept_outputs(graph, channels)
    edited = shrink(graph.module, graph.spaces, channels)
    after = graph.rebuilt()
    per_layer = count_cost(after.module, after.input_shape).per_layer
    return NarrowedRun(after, per_layer, dict(widths), channels, remaining, tuple(edited))


def survey(
    opened: OpenedRun, narrowed: NarrowedRun, *, sampler: bool = True, path: Path | None = None, reporter: Reporter
) -> SurveyedRun:
    """Measure the error of every size of every layer, or read an earlier survey of the run.

    Parameters
    ----------
    opened : OpenedRun
    narrowed : NarrowedRun
    sampler : bool
        Whether layers may read a subset of channels that other layers need too. The survey is made with samplers in
        any case, so that both settings share one.
    path : Path, optional
        Of the file; ``curves.npz`` of the run where not given.
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    SurveyedRun
    """
    graph = narrowed.graph
    result = survey_network(
        path or opened.run.curves, opened.frozen, graph, remaining_outputs=narrowed.remaining_outputs,
        device=opened.device, memory=opened.memory, reporter=reporter,
    )  # fmt: skip
    return SurveyedRun(opened, narrowed, graph if sampler else graph.rebuilt(sampler=False), result)


def _require_entries(graph: NetworkGraph, frozen: FrozenFile, run: RunDirectory) -> None:
    """Refuse frozen points of an earlier version, in which fewer calls and shortcuts were recorded."""
    for layer in graph.layers:
        for name, _, _ in keys_of(layer, frozen.meta["n_points"]) if layer.recorded else ():
            for key in (name,) if layer.recovers is None else (name, shortcut_key(name)):
                if key not in frozen.layers:
                    got = "a file of an earlier version"
                    raise FileError(run.frozen, f"must hold the responses '{key}'", got=got, fix="run freeze again")


def _stage_memory(
    graph: NetworkGraph, frozen: FrozenFile, resources: Resources, folder: Path, before: Any
) -> StageMemory:
    assert isinstance(graph.module, fx.GraphModule)
    foot = measure(graph.module, frozen.images(0, 1))
    fitted = [layer for layer in graph.layers if layer.recorded]
    n_points = frozen.meta["n_points"]
    limits = set_limits(
        graph.module, foot, resources, folder=folder,
        solver=max((problem_bytes(layer, -(-frozen.n_recorded // count()), n_points) for layer in fitted), default=0),
        rows=max((row_bytes(layer, n_points) for layer in fitted), default=0),
        before=before,
    )  # fmt: skip
    # What decides the course of the work is common to all processes.
    common = ("batch_size", "backward_batch", "fit_bytes")
    least = {name: min(gathered(getattr(limits, name))) for name in common}
    return StageMemory(graph.module, foot, replace(limits, **least), folder)
