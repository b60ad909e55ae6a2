"""Gatherer of layer problems: moments, rows, held-out images, recovery."""

from types import SimpleNamespace

import pytest
import torch
from networks import randomise

from decomp.data.formats.frozen_file import FrozenFile
from decomp.data.formats.frozen_keys import keys_of
from decomp.errors import NumericalError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.shared_spaces import kept_outputs
from decomp.graph.tracing import trace
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.decomposition import gather
from decomp.pipelines.decomposition.gather import ProblemGatherer
from decomp.pipelines.decomposition.record_responses import ResponseRecording
from decomp.pipelines.run import calibration
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import open_frozen
from decomp.problem.moments import Moments
from decomp.surgery.narrow_network import shrink
from tests.pipelines.digit_runs import SHAPE, Mirrored

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


@pytest.fixture
def opened(run):
    frozen, original = open_frozen(run)
    with frozen:
        yield frozen, NetworkGraph(trace(original), SHAPE)


def run_name(frozen):
    return frozen.meta["model"]


def rows_of(problem):
    return tuple(torch.cat(parts) for parts in zip(*problem.rows()))


def products(one, other):
    """K and C of two disjoint sets of rows together."""
    share = one.n_rows * other.n_rows / (one.n_rows + other.n_rows)
    dx, dy = one.x_mean - other.x_mean, one.y_mean - other.y_mean
    return one.K + other.K + share * torch.outer(dx, dx), one.C + other.C + share * torch.outer(dx, dy)


def test_mixtures_are_fitted_and_not_held_out(opened):
    frozen, graph = opened
    layer = next(layer for layer in graph.layers if layer.fitted)
    whole = ProblemGatherer(frozen, graph, batch_size=7)
    fitted, other = whole.problem(layer)
    assert whole.halves is None
    _, everything = products(fitted.moments, other)
    frozen.n_images = 200  # the others count as mixtures of these
    gatherer = ProblemGatherer(frozen, graph, batch_size=7)
    problem, held_out = gatherer.problem(layer)
    n_points = frozen.meta["n_points"]
    assert (problem.moments.n_rows, held_out.n_rows) == (380 * n_points, 20 * n_points)
    X, Y = (torch.cat(parts) for parts in zip(*gatherer._fitted_rows(layer, gatherer._module(layer))))
    assert len(X) == problem.moments.n_rows
    assert torch.allclose(Moments.of_rows(X, Y).K, problem.moments.K, rtol=1e-4, atol=1e-4)
    _, together = products(problem.moments, held_out)
    assert torch.allclose(together, everything, rtol=1e-4, atol=1e-4)


def test_few_images_are_fitted_in_two_halves_that_add_up(opened, monkeypatch):
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 1000)
    frozen, graph = opened
    layer = next(layer for layer in graph.layers if layer.fitted)
    gatherer = ProblemGatherer(frozen, graph, batch_size=7)
    problem, held_out = gatherer.problem(layer)
    one, other = gatherer.halves
    n_points = frozen.meta["n_points"]
    assert (one.n_rows, other.n_rows, held_out.n_rows) == (180 * n_points, 180 * n_points, 40 * n_points)
    X, Y = (torch.cat(parts) for parts in zip(*gatherer._fitted_rows(layer, gatherer._module(layer))))
    assert torch.allclose(Moments.of_rows(X[: one.n_rows], Y[: one.n_rows]).C, one.C, rtol=1e-4, atol=1e-4)
    K, _ = products(one, other)
    assert torch.allclose(K, problem.moments.K, rtol=1e-12, atol=1e-12 * float(K.diagonal().max()))


@pytest.mark.parametrize("run", ["plain", "residual", "mirrored", "upward"], indirect=True)
def test_the_weights_of_the_original_solve_the_normal_equations_of_every_layer(opened):
    frozen, graph = opened
    gatherer = ProblemGatherer(frozen, graph)
    for layer in graph.layers:
        problem, held_out = gatherer.problem(layer)
        n_points = sum(points for _, _, points in keys_of(layer, frozen.meta["n_points"]))
        assert len(layer.calls) == (1 if run_name(frozen) != "mirrored" or layer.name == "head" else 2)
        assert (problem.moments.n_rows, held_out.n_rows) == (360 * n_points, 40 * n_points)
        weight = problem.weight.flatten(1).double()
        for moments in (problem.moments, held_out):
            off = moments.K @ weight.T - moments.C
            assert off.abs().max() <= 1e-5 * moments.C.abs().max()
            bias = 0 if problem.bias is None else problem.bias
            assert torch.allclose(moments.x_mean @ weight.T + bias, moments.y_mean, atol=1e-5)


def test_the_moments_are_those_of_the_rows_stored_or_gathered_again(opened, monkeypatch):
    frozen, graph = opened
    layer = graph.layers[1]
    gatherer = ProblemGatherer(frozen, graph)
    problem, _ = gatherer.problem(layer)
    X, Y = rows_of(problem)
    moments = Moments.of_rows(X.flatten(1).double(), Y.double())
    assert torch.allclose(moments.K, problem.moments.K, rtol=1e-5, atol=1e-5 * moments.K.abs().max().item())
    assert gatherer._stored_rows is not None
    monkeypatch.setattr(gather, "ROWS_BUDGET", 0)
    again = ProblemGatherer(frozen, graph)
    anew, _ = again.problem(layer)
    assert again._stored_rows is None
    assert all(torch.equal(a, b) for a, b in zip(rows_of(anew), (X, Y)))


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_with_recovery_the_branch_is_fitted_to_what_its_shortcut_lacks(opened):
    """With the stem's outputs enlarged by a tenth, a tenth of the original shortcut is to be taken back."""
    frozen, graph = opened
    with torch.no_grad():
        for parameter in graph.module.get_submodule("stem").parameters():
            parameter.mul_(1.1)
    layer = graph.layer("conv2")
    _, without = rows_of(ProblemGatherer(frozen, graph).problem(layer)[0])
    _, with_recovery = rows_of(ProblemGatherer(frozen, graph, recovery=True).problem(layer)[0])
    shortcut = frozen.responses("conv2: shortcut", 0, 360).flatten(0, 1)
    assert torch.equal(without, frozen.responses("conv2", 0, 360).flatten(0, 1))
    assert torch.allclose(with_recovery, without - 0.1 * shortcut, atol=1e-5)


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_a_narrowed_layer_is_fitted_to_the_outputs_that_remain(opened):
    frozen, graph = opened
    channels = {"stem": [0, 2, 5]}
    remaining = kept_outputs(graph, channels)
    shrink(graph.module, graph.spaces, channels)
    narrowed = NetworkGraph(graph.module, SHAPE)
    gatherer = ProblemGatherer(frozen, narrowed, remaining_outputs=remaining)
    _, Y = rows_of(gatherer.problem(narrowed.layer("stem"))[0])
    assert torch.equal(Y, frozen.responses("stem", 0, 360)[..., [0, 2, 5]].flatten(0, 1))


def test_replaced_weights_are_those_of_the_network_inside_the_block_only(opened):
    frozen, graph = opened
    gatherer, layer = ProblemGatherer(frozen, graph), graph.layers[0]
    module, images = graph.module.get_submodule(layer.name), frozen.images(0, 5)
    with torch.no_grad():
        before = graph.module(images)
        with gatherer.replaced(layer, module.weight * 0, torch.ones(len(module.weight))):
            assert torch.equal(module(images), torch.ones(5, len(module.weight), *layer.out_hw))
        assert torch.equal(graph.module(images), before)


def test_activations_that_are_not_finite_are_named_by_layer_and_images(opened):
    frozen, graph = opened
    with torch.no_grad():
        graph.module.get_submodule("0").weight[0] = float("inf")
    with pytest.raises(NumericalError, match=r"3: the activations it reads must be finite, got \d+ NaN or infinite"):
        ProblemGatherer(frozen, graph).problem(graph.layer("3"))


def frozen_points(folder, network, images):
    """A frozen file with all positions of all layers, and the graph."""
    run, graph = RunDirectory.create(folder), NetworkGraph(trace(network), SHAPE)
    source = SimpleNamespace(train=SimpleNamespace(images=lambda indices: images[indices]))
    outputs = Outputs((Output("output", "values", tuple(network(images[:1])[0].shape)),))
    recording = ResponseRecording(graph, 100, 0, torch.arange(len(images)), outputs)
    recording.write(run, {"n_points": 100}, source, 8, torch.device("cpu"), Reporter(quiet=True))
    return FrozenFile(run.frozen), graph


def test_an_encoder_called_twice_is_fitted_as_the_encoder_by_itself_on_all_that_it_reads(tmp_path):
    network = randomise(Mirrored())
    images = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([images, images.flip(3)], 1).flatten(0, 1)
    frozen, graph = frozen_points(tmp_path / "twice", network, images)
    alone, encoder = frozen_points(tmp_path / "alone", network.encoder, pairs)
    with frozen, alone:
        for recovery in (False, True):
            routes = (frozen, graph, "encoder."), (alone, encoder, "")
            gatherers = [ProblemGatherer(points, g, recovery=recovery, batch_size=7) for points, g, _ in routes]
            for name in ("stem", "conv1", "conv2"):
                found = [
                    gatherer.problem(g.layer(prefix + name)) for gatherer, (_, g, prefix) in zip(gatherers, routes)
                ]
                (a, held_a), (b, held_b) = found
                assert torch.equal(a.weight, b.weight) and a.activation == b.activation
                for one, other in ((a.moments, b.moments), (held_a, held_b)):
                    assert one.n_rows == other.n_rows and torch.allclose(one.K, other.K, rtol=1e-5)
                    assert torch.allclose(one.C, other.C, rtol=1e-4, atol=1e-4 * other.C.abs().max())
                # A coarser layer, so that the next one is fitted to changed inputs, and its shortcut is off.
                for g, prefix in ((graph, "encoder."), (encoder, "")):
                    g.module.get_submodule(prefix + name).weight.data.mul_(0.9)


@pytest.mark.parametrize("run", ["mirrored"], indirect=True)
def test_the_rows_of_a_layer_called_several_times_are_the_same_for_any_batch(opened):
    frozen, graph = opened
    first, second = (ProblemGatherer(frozen, graph, batch_size=batch) for batch in (400, 11))
    for layer in graph.layers:
        (a, _), (b, _) = first.problem(layer), second.problem(layer)
        for one, other in zip(rows_of(a), rows_of(b)):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("run", ["mirrored"], indirect=True)
def test_the_problems_of_an_encoder_that_is_called_twice_take_little_more_than_one_pass(opened):
    frozen, graph = opened
    gatherer = ProblemGatherer(frozen, graph)
    for layer in graph.layers:
        gatherer.problem(layer)
    # Once up to each layer, and again what lies between its calls: not half of the network for each layer.
    assert gatherer.replay.forward_images < 1.3 * frozen.n_images
