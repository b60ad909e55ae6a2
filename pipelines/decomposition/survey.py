"""Survey of a network before any plan: error curves of every layer, and the output metric of its responses."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import LayerPlan
from decomp.errors import FileError
from decomp.execution import output_metric
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph
from decomp.solvers.output_curves import output_curve
from decomp.solvers.solve_layer import FitSettings
from decomp.time_spent import part

from ...data.formats.curves_file import VERSION, Survey, read_curves, write_curves
from ...data.formats.digests import digest_json
from ...data.formats.frozen_file import FrozenFile
from ...data.formats.frozen_keys import keys_of
from ..console.reporter import Reporter
from ..console.words import listed
from ..distributed.process_group import count, exact_total, from_first, number
from ..measure.parallel import in_batches
from ..run.calibration import fitted_images
from ..run.outputs import frozen_outputs
from .fit_layer import exchange_layer, fit_layer
from .fitted_order import FittedOrder
from .gather import ProblemGatherer
from .memory import StageMemory, problem_bytes
from .survey_curves import changes_of_output, known_curves, steps_of

# Images that are fitted for the error curves, where there are more and these give ROWS_EACH rows for every input of
# every layer: with so many, further ones hardly change an error.
CURVE_IMAGES, ROWS_EACH = 2_000, 16
# Images whose gradients make up the output metric; of large networks as many as keep a forward pass over them within
# METRIC_WORK multiply-accumulates, and no fewer than LEAST_METRIC_IMAGES.
METRIC_IMAGES, LEAST_METRIC_IMAGES, METRIC_WORK = 2_000, 500, 2e11
# Held-out images on which the change of the output is measured, once for each layer: as many as keep the forward work
# of the whole stage within FORWARD_PASSES passes over the calibration images, between these bounds. Two passes go into
# the problems of the layers, here and when they are solved, and two tenths into the comparison at the end.
LEAST_OUTPUT_IMAGES, MOST_OUTPUT_IMAGES, FORWARD_PASSES, OTHER_PASSES = 32, 500, 4.0, 2.2


def survey_network(
    path: Path,
    frozen: FrozenFile,
    graph: NetworkGraph,
    *,
    remaining_outputs: Mapping[str, Tensor] | None = None,
    device: torch.device,
    memory: StageMemory,
    reporter: Reporter,
) -> Survey:
    """Survey a network, or read the survey of the same network and points from a file.

    Parameters
    ----------
    path : Path
        ``curves.npz`` of the run; written after a survey. Until then the curves of each layer are kept in the folder
        ``curves`` beside it, where a survey that was stopped goes on.
    frozen : decomp.data.formats.frozen_file.FrozenFile
    graph : decomp.graph.network_graph.NetworkGraph
        Of the original network on ``device``, or of the original with whole channel spaces narrowed.
    remaining_outputs : dict of str to torch.LongTensor, optional
        Output channels that stay, of the layers that lost some with a channel space.
    device : torch.device
    memory : decomp.pipelines.decomposition.memory.StageMemory
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    decomp.data.formats.curves_file.Survey
    """
    remaining = dict(remaining_outputs or {})
    listed = {name: places.tolist() for name, places in remaining.items()}
    most = curve_images(graph, frozen)
    some = {"images": most} if most < fitted_images(frozen.n_images) else {}
    digest = digest_json({"version": VERSION, "frozen": frozen.content, "kept": listed, **some})
    earlier = _read_earlier(path, digest, graph, reporter)
    kept = _Kept(path.with_suffix(""), digest, reporter)
    if earlier is not None:
        kept.remove()
        return earlier
    if remaining:
        graph = _refitted(frozen, graph, remaining, device=device, memory=memory, reporter=reporter)
    gatherer = ProblemGatherer(
        frozen, graph, remaining_outputs=remaining, share=0.5, device=device, memory=memory, most_images=most
    )  # fmt: skip
    begun = kept.read("metrics", graph.layers)
    if begun is None:
        metrics = output_metrics(frozen, graph, device=device, memory=memory, reporter=reporter)
        # In the order of the layers, as they are read: so the file of a survey that went on is the same.
        begun = Survey({}, {}, {la.name: metrics[la.name].cpu() for la in graph.layers if la.name in metrics})
        kept.write("metrics", begun)
    own, output = _all_curves(gatherer, _OutputChange(gatherer, memory), kept, memory, reporter)
    survey = Survey(own, output, begun.metrics)
    write_curves(path, digest, survey)
    kept.remove()
    memory.clear()
    return survey


def _read_earlier(path: Path, digest: str, graph: NetworkGraph, reporter: Reporter) -> Survey | None:
    """The survey in the file; None where there is none of these points, or a damaged one, which is then replaced."""
    if not path.is_file():
        return None
    try:
        survey = read_curves(path, digest, [layer.name for layer in graph.layers])
    except FileError as error:
        reporter.warn(f"{error} It is computed again.")
        return None
    if survey is None:
        reporter.step(f"{path}: made from other frozen points; computed again")
    return survey


class _Kept:
    """Files of a survey that is not finished: the output metrics, and the curves of each layer by its number."""

    def __init__(self, folder: Path, digest: str, reporter: Reporter) -> None:
        self.folder, self.digest, self.reporter = folder, digest, reporter

    def read(self, name: str, layers: Sequence[Layer]) -> Survey | None:
        """The entries of some layers; None where they were not kept, were of other points, or are damaged."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            return read_curves(path, self.digest, [layer.name for layer in layers])
        except FileError as error:
            self.reporter.warn(f"{error} It is computed again.")
            return None

    def write(self, name: str, survey: Survey) -> None:
        write_curves(self.folder / f"{name}.npz", self.digest, survey)

    def remove(self) -> None:
        if self.folder.is_dir():
            shutil.rmtree(self.folder)


def _all_curves(
    gatherer: ProblemGatherer, change: _OutputChange, kept: _Kept, memory: StageMemory, reporter: Reporter
) -> tuple[dict[str, LayerCurves], dict[str, LayerCurves]]:
    """Own error and change of the output for every size of every layer."""
    frozen, layers = gatherer.frozen, gatherer.graph.layers
    own: dict[str, LayerCurves] = {}
    output: dict[str, LayerCurves] = {}
    for layer in layers:
        begun = kept.read(str(layer.index), [layer]) if steps_of(layer) else Survey({}, {}, {})
        if begun is not None:
            own[layer.name] = begun.own.get(layer.name, LayerCurves())
            output[layer.name] = begun.output.get(layer.name, LayerCurves())
    left = [layer for layer in layers if layer.name not in own]

    def size_of(layer: Layer) -> int:
        return problem_bytes(layer, -(-frozen.n_recorded // count()), frozen.meta["n_points"])

    work = [layer.columns for layer in left]
    with reporter.progress(len(left), "error curves", "layers", work=work) as progress:
        # Rows are gathered in execution order; the curves of several layers are then computed at a time, in each
        # process those of some layers.
        batches = iter(in_batches(left, size_of, from_first(torch.get_num_threads), memory.limits.fit_bytes))
        while together := list(islice(batches, count())):
            layers_of_all = [layer for batch in together for layer in batch]
            progress.begin(", ".join(layer.name for layer in layers_of_all), len(layers_of_all))
            known = known_curves(gatherer, together)
            for some in [layers_of_all] if count() > 1 else [[layer] for layer in layers_of_all]:
                changes = changes_of_output(change.measure, some, known)
                for layer in some:
                    curves = known[layer.name].curves
                    found = {step: output_curve(curve, changes[layer.name, step]) for step, curve in curves.items()}
                    own[layer.name], output[layer.name] = LayerCurves(**curves), LayerCurves(**found)
                    one = {layer.name: own[layer.name]}, {layer.name: output[layer.name]}
                    kept.write(str(layer.index), Survey(*one, {}))
                    progress.update(1)
    names = [layer.name for layer in layers]
    return {name: own[name] for name in names}, {name: output[name] for name in names}


def _refitted(
    frozen: FrozenFile,
    graph: NetworkGraph,
    remaining_outputs: Mapping[str, Tensor],
    *,
    device: torch.device,
    memory: StageMemory,
    reporter: Reporter,
) -> NetworkGraph:
    """A copy of a narrowed network with every layer fitted to the original on the channels it still reads."""
    graph = graph.copied()
    gatherer = ProblemGatherer(
        frozen, graph, remaining_outputs=remaining_outputs, recovery=True, device=device, memory=memory
    )
    settings = FitSettings(refined=False)
    with reporter.progress(len(graph.layers), "fit of the narrowed layers", "layers") as progress:
        for layer in graph.layers:
            if layer.recorded:
                solution, _ = fit_layer(gatherer, layer, LayerPlan(layer.name), settings, reported=False)
                exchange_layer(gatherer, solution)
            progress.update(1)
    memory.clear()
    return graph


def output_metrics(
    frozen: FrozenFile, graph: NetworkGraph, *, device: torch.device, memory: StageMemory, reporter: Reporter
) -> dict[str, Tensor]:
    """Output metric (n, n) of every fitted layer, see :mod:`decomp.execution.output_metric`."""
    order = FittedOrder(frozen)
    n_images, batch_size = min(order.n_fit, metric_images(memory.foot.macs)), memory.limits.backward_batch
    with reporter.progress(n_images, "output metric", "images") as progress:

        def batches() -> Iterator[Tensor | int]:
            for place, start in enumerate(range(0, n_images, batch_size)):
                stop = min(start + batch_size, n_images)
                mine = place % count() == number()
                yield order.images(start, stop).to(device) if mine else stop - start
                progress.update(stop - start)
                memory.count_passes((stop - start) * mine)

        with part("gradients"):
            metrics = output_metric.output_metrics(
                graph, batches(), frozen_outputs(frozen), frozen.meta["seed"], summed=exact_total
            )  # fmt: skip
    without = [layer.name for layer in graph.layers if layer.fitted and layer.name not in metrics]
    if without:
        reporter.step(
            f"{listed(without, 3)}: behind a step without a gradient, or before one, such as a comparison; errors "
            "of their responses count alike, whatever they change in the output"
        )
    return metrics


def metric_images(macs: float) -> int:
    """Most images for the output metric of a network of so many multiply-accumulates an image."""
    return min(METRIC_IMAGES, max(LEAST_METRIC_IMAGES, int(METRIC_WORK / max(macs, 1.0))))


def curve_images(graph: NetworkGraph, frozen: FrozenFile) -> int:
    """Number of fitted images from which the error curves of all layers are computed, at most."""
    needed = [CURVE_IMAGES]
    for layer in graph.layers:
        if layer.fitted and steps_of(layer):
            points = sum(points for _, _, points in keys_of(layer, frozen.meta["n_points"]))
            needed.append(-(-ROWS_EACH * layer.columns // points))
    return max(needed)


def output_images(graph: NetworkGraph, frozen: FrozenFile, work: Sequence[float], macs: float) -> int:
    """Number of held-out images on which the change of the output is measured.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    frozen : decomp.data.formats.frozen_file.FrozenFile
    work : sequence of float
        Share of a pass for every node. A measurement runs the network from the layer to the output, so it costs most
        for the first layers.
    macs : float
        Multiply-accumulates of a pass over one image, which decide how many images are in the output metric.
    """
    places = {node: place for place, node in enumerate(graph.module.graph.nodes)}
    behind = sum(sum(work[places[graph.node(layer)] :]) for layer in graph.layers if steps_of(layer))
    n_fit = fitted_images(frozen.n_images)
    held_out = frozen.n_images - n_fit
    free = (FORWARD_PASSES - OTHER_PASSES) * frozen.n_images - min(n_fit, metric_images(macs))
    return min(held_out, max(LEAST_OUTPUT_IMAGES, min(MOST_OUTPUT_IMAGES, int(free / (1 + behind)))))


class _OutputChange:
    """Change of the network's output on held-out images when the weights of one layer are replaced."""

    def __init__(self, gatherer: ProblemGatherer, memory: StageMemory) -> None:
        self.gatherer, self.graph = gatherer, gatherer.graph
        frozen, first = gatherer.frozen, gatherer.n_fit
        self.outputs = frozen_outputs(frozen)
        self.replay = memory.replay(
            self.graph.module,
            lambda start, stop: frozen.images(first + start, first + stop),
            output_images(self.graph, frozen, memory.foot.work, memory.foot.macs),
            gatherer.device,
            share=0.5,
        )
        self.wanted = self._outputs()

    def _outputs(self) -> dict[str, Tensor]:
        parts = [self.outputs.named(y, stop - start) for start, stop, y in self.replay.outputs()]
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}

    def measure(self, layer: Layer) -> Callable[[Tensor, Tensor | None], float]:
        """A function of a layer's weights and bias that gives the mean change of the output."""
        with part("change of the outputs"):
            self.replay.advance(self.graph.node(layer))

        def change(weight: Tensor, bias: Tensor | None) -> float:
            with part("change of the outputs"), self.gatherer.replaced(layer, weight, bias), torch.no_grad():
                return self.outputs.change(self.wanted, self._outputs()).mean().item()

        return change
