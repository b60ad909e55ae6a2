"""What is known of the original network before any plan: error curves of every layer, and which errors are felt."""

import copy

import torch

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import STEPS, LayerPlan
from decomp.errors import FileError
from decomp.execution import output_metric as metric
from decomp.execution import outputs
from decomp.execution.outputs import as_tensor
from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.network_graph import NetworkGraph
from decomp.solvers import error_curves as curves
from decomp.solvers import output_curves as sensitivity
from decomp.solvers import selection
from decomp.solvers import solve_layer as layers
from decomp.surgery import apply_solution as surgery

from ...data.formats.curves_file import VERSION, Survey, read_curves, write_curves
from ...data.formats.digests import digest_json
from ..measure.parallel import in_batches, in_parallel
from .gather import ProblemGatherer, fitted_images
from .memory import problem_bytes

# Images whose gradients make up the output metric.
METRIC_IMAGES = 2_000
# Held-out images on which the change of the output is measured: as many as keep the forward work of the whole stage
# within FORWARD_PASSES passes over the calibration images, between these bounds. Two passes go into the problems of
# the layers, here and when they are solved, and two tenths into the comparison at the end.
LEAST_WATCHED, MOST_WATCHED, FORWARD_PASSES, OTHER_PASSES = 32, 500, 4.0, 2.2


def survey(run, frozen, view, *, kept=None, device, space, reporter):
    """Survey the original network, or read what an earlier survey left in the run directory.

    Parameters
    ----------
    run : decomp.pipelines.run.directory.RunDirectory
    frozen : decomp.data.formats.frozen_file.FrozenFile
    view : decomp.graph.network_graph.NetworkGraph
        Of the original network on ``device``, or of the original with whole channel spaces narrowed.
    kept : dict of str to torch.LongTensor, optional
        Outputs that stay, of the layers that lost some to that.
    device : torch.device
    space : decomp.pipelines.decomposition.memory.StageMemory
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    Survey
    """
    options = {"device": device, "memory": space}
    left = {name: places.tolist() for name, places in (kept or {}).items()}
    digest = digest_json({"version": VERSION, "frozen": frozen.content, "kept": left})
    before = _earlier_survey(run.curves, digest, view, reporter)
    if before is not None:
        return before
    if kept:
        view = _refitted(frozen, view, kept, reporter, **options)
    problems = ProblemGatherer(frozen, view, remaining_outputs=kept, share=0.5, **options)
    metrics = output_metrics(frozen, view, device=device, space=space, reporter=reporter)
    watched = _Watched(frozen, view, problems, space)
    own, output = {}, {}

    def size_of(layer):
        return problem_bytes(layer, frozen.n_images, frozen.meta["n_points"])

    with reporter.progress(len(view.layers), "error curves", "layers") as progress:
        # Rows are gathered from the front to the back; the curves of several layers are then worked out at a time.
        for batch in in_batches(view.layers, size_of, torch.get_num_threads(), space.limits.fit_bytes):
            gathered = [(_steps(layer), *problems.problem(layer)) if _steps(layer) else None for layer in batch]
            found = in_parallel(_own_curves, [task for task in gathered if task is not None])
            for layer, task in zip(batch, gathered):
                own[layer.name], output[layer.name] = LayerCurves(), LayerCurves()
                if task is not None:
                    curves_found, order = found.pop(0)
                    own[layer.name] = LayerCurves(**curves_found)
                    output[layer.name] = _output_curves(layer, task[1], curves_found, order, watched)
                progress.update(1)
    found = Survey(own, output, {name: matrix.cpu() for name, matrix in metrics.items()})
    write_curves(run.curves, digest, found)
    space.clear()
    return found


def _earlier_survey(path, digest, view, reporter):
    """The survey in a curves file; None where there is none that can be used: it is then made again."""
    if not path.is_file():
        return None
    try:
        earlier = read_curves(path, digest, [layer.name for layer in view.layers])
    except FileError as error:
        reporter.warn(f"{error} It is made again.")
        return None
    if earlier is None:
        reporter.step(f"{path}: made from other points; made again")
    return earlier


def _refitted(frozen, view, kept, reporter, *, device, memory):
    """A copy of a narrowed network with every layer fitted to the original on what it still reads."""
    fitting = FittingLimits(frozen.n_images)
    view = NetworkGraph(copy.deepcopy(view.module), view.input_shape, view.name, fitting=fitting)
    problems = ProblemGatherer(frozen, view, remaining_outputs=kept, recovery=True, device=device, memory=memory)
    with reporter.progress(len(view.layers), "fit of what is left", "layers") as progress:
        for layer in view.layers:
            if layer.fitted:
                solution, _ = layers.solve_layer(problems.problem(layer)[0], LayerPlan(layer.name), refined=False)
                surgery.apply_solution(view.module, view, solution)
            progress.update(1)
    memory.clear()
    return view


def output_metrics(frozen, view, *, device, space, reporter):
    """Output metric (n, n) of every fitted layer, see :mod:`decomp.execution.output_metric`."""
    n_images = min(fitted_images(frozen), METRIC_IMAGES)
    with reporter.progress(n_images, "output metric", "images") as progress:
        images = _metric_images(frozen, n_images, device, space.limits.backward_batch, progress)
        metrics = metric.output_metrics(view, images, frozen.meta["seed"])
    space.count_passes(n_images)
    return metrics


def _metric_images(frozen, n_images, device, batch_size, progress):
    for start in range(0, n_images, batch_size):
        stop = min(start + batch_size, n_images)
        yield frozen.images(start, stop).to(device)
        progress.update(stop - start)


def watched_images(view, frozen, work):
    """How many held-out images the change of the output is measured on.

    Parameters
    ----------
    view : decomp.graph.network_graph.NetworkGraph
    frozen : decomp.data.formats.frozen_file.FrozenFile
    work : sequence of float
        Share of a pass for every node. A measurement runs the network from the layer on, so that it is dearest for the
        first layers.
    """
    places, passes = {node: place for place, node in enumerate(view.module.graph.nodes)}, 1.0
    for layer in view.layers:
        passes += len(_steps(layer)) * len(sensitivity.LEVELS) * sum(work[places[view.node(layer)] :])
    n_fit = fitted_images(frozen)
    free = (FORWARD_PASSES - OTHER_PASSES) * frozen.n_images - min(n_fit, METRIC_IMAGES)
    return min(frozen.n_images - n_fit, max(LEAST_WATCHED, min(MOST_WATCHED, int(free / passes))))


class _Watched:
    """The network's output on some held-out images, and how it changes when one layer is exchanged."""

    def __init__(self, frozen, view, problems, space):
        self.view, self.problems = view, problems
        first = problems.n_fit
        self.replay = space.replay(
            view.module,
            lambda start, stop: frozen.images(first + start, first + stop),
            watched_images(view, frozen, space.foot.work),
            problems.device,
            share=0.5,
        )
        self.wanted = self._outputs()

    def _outputs(self):
        return torch.cat([as_tensor(y).cpu() for _, _, y in self.replay.outputs()])

    def measure(self, layer):
        """A function of a layer's weights and bias: the mean change of the output."""
        self.replay.advance(self.view.node(layer))

        def change(weight, bias):
            with self.problems.replaced(layer, weight, bias):
                return outputs.output_divergence(self.wanted, self._outputs()).mean().item()

        return change


def _steps(layer):
    return [step for step in STEPS if step not in layer.left_alone]


def _own_curves(steps, problem, held_out):
    """Own error for every size of every step of one layer, and the order in which its channels are kept."""
    own, order = {}, None
    if "prune" in steps:
        order = selection.retention_order(problem, "backward")
        own["prune"] = curves.selection_curve(problem, held_out, order=order)
    if "spatial" in steps:
        own["spatial"] = curves.spatial_curve(problem, held_out)
    if "channel" in steps:
        own["channel"] = curves.channel_curve(problem, held_out)
    return own, order


def _output_curves(layer, problem, own, order, watched):
    """Change of the network's output for every size of every step of one layer."""
    approximate, measure = sensitivity.approximations(problem, order), watched.measure(layer)
    return LayerCurves(**{step: sensitivity.output_curve(own[step], approximate[step], measure) for step in own})
