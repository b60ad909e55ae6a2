"""Survey: error curves of every layer, the change of the output, and the file with both."""

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx

from decomp.data.formats.curves_file import read_curves
from decomp.execution.output_change import kl_divergence
from decomp.pipelines.decomposition import survey, survey_curves
from decomp.pipelines.decomposition.gather import ProblemGatherer
from decomp.pipelines.decomposition.session import narrow, open_run
from decomp.pipelines.decomposition.session import survey as survey_run
from decomp.pipelines.measure.resources import Resources
from tests.pipelines.digit_runs import Collected, planned

CPU = torch.device("cpu")


@pytest.mark.usefixtures("one_thread")
def test_a_damaged_survey_is_made_again_with_a_warning_and_an_intact_one_is_read(vgg_run):
    before, reporter = vgg_run.curves.read_bytes(), Collected()
    with open_run(vgg_run, Resources(CPU)) as opened:
        narrowed = narrow(opened, {}, reporter=reporter)
        first = survey_run(opened, narrowed, reporter=reporter).survey
        assert reporter.messages == [] and vgg_run.curves.read_bytes() == before
        vgg_run.curves.write_bytes(before[:-100])
        second = survey_run(opened, narrowed, reporter=reporter).survey
    assert "curves.npz" in reporter.messages[0] and "computed again" in reporter.messages[0]
    assert first.own.keys() == second.own.keys()
    for name in first.own:
        assert np.allclose(first.own[name].spatial, second.own[name].spatial) if first.own[name].ranked else True


def test_the_change_of_the_output_is_that_of_the_network_with_the_layer_replaced(vgg_run):
    with open_run(vgg_run, Resources(CPU)) as opened:
        graph, frozen = opened.graph, opened.frozen
        gatherer = ProblemGatherer(frozen, graph)
        change = survey._OutputChange(gatherer, opened.memory)
        layer = graph.layers[1]
        module = graph.module.get_submodule(layer.name)
        first = gatherer.n_fit
        n_images = survey.output_images(graph, frozen, opened.memory.foot.work, 0.0)
        images = frozen.images(first, first + n_images)
        weight, bias = module.weight.detach() * 0.5, module.bias.detach() + 0.1
        with torch.no_grad():
            wanted = graph.module(images)
            measured = change.measure(layer)(weight, bias)
            assert torch.equal(graph.module(images), wanted)  # nothing is left on the network
            module.weight.copy_(weight)
            module.bias.copy_(bias)
            expected = kl_divergence(wanted, graph.module(images)).mean().item()
    assert measured == pytest.approx(expected, rel=1e-4) and measured > 0.01


def test_the_largest_size_of_every_step_loses_nothing(vgg_run):
    with open_run(vgg_run, Resources(CPU)) as opened:
        found = survey_run(opened, narrow(opened, {}, reporter=Collected()), reporter=Collected()).survey
        steps = {layer.name: survey_curves.steps_of(layer) for layer in opened.graph.layers}
    for curves in (found.own, found.output):
        for name, allowed in steps.items():
            assert {step for step in ("prune", "spatial", "channel") if getattr(curves[name], step) is not None} == {
                *allowed
            }
            for step in allowed:
                curve = getattr(curves[name], step)
                assert curve[-1] < 1e-4 < curve[1]


def graph_of(n_nodes, n_layers):
    """A graph of layers that each can be split, one at each of the first nodes."""
    graph = fx.Graph()
    for place in range(n_nodes):
        graph.placeholder(f"x{place}")
    nodes = list(graph.nodes)
    layers = [SimpleNamespace(left_alone={"channel": "", "prune": ""}, place=place) for place in range(n_layers)]
    return SimpleNamespace(module=SimpleNamespace(graph=graph), layers=layers, node=lambda layer: nodes[layer.place])


def output_images(n_nodes, n_layers, n_images, macs=0.0):
    graph, frozen = graph_of(n_nodes, n_layers), SimpleNamespace(n_images=n_images)
    return survey.output_images(graph, frozen, [0.1] * 10, macs)


def test_output_images_fill_the_budget_of_forward_passes_and_stay_within_the_held_out_ones():
    # One measurement for each layer: ten tenths, nine tenths, ... of a pass, and one pass for the original.
    assert output_images(10, 10, 1600) == int((1.8 * 1600 - 1440) / (1 + 5.5)) // 160 * 160 == 160
    assert output_images(10, 10, 2400) == int((1.8 * 2400 - 2000) / (1 + 5.5)) // 240 * 240 == 240
    assert output_images(10, 10, 2250) == min(225, int((1.8 * 2250 - 2000) / (1 + 5.5)))
    assert output_images(10, 2, 10**6) == 500
    assert output_images(10, 10, 400) == 40
    assert output_images(10, 2, 20) == 2


def test_a_large_network_has_fewer_images_in_its_metric_and_no_fewer_than_some():
    counts = [survey.metric_images(macs) for macs in (0.0, 1e8, 2.5e8, 4e8, 15e9)]
    assert counts == [2000, 2000, 800, 500, 500]


def test_curves_of_a_file_are_those_of_the_survey(vgg_run):
    with open_run(vgg_run, Resources(CPU)) as opened:
        found = survey_run(opened, narrow(opened, {}, reporter=Collected()), reporter=Collected()).survey
        with np.load(vgg_run.curves) as data:
            digest = str(data["digest"])
        read = read_curves(vgg_run.curves, digest, found.own)
        assert read_curves(vgg_run.curves, "0" * 64, found.own) is None
    assert all(np.array_equal(read.own[name].prune, found.own[name].prune) for name in ("3", "7"))


@pytest.mark.parametrize("workers", [2, 4])
def test_the_survey_is_the_same_with_any_number_of_workers(vgg_run, monkeypatch, workers):
    before = vgg_run.curves.read_bytes()
    batched = survey.in_batches
    sizes = []

    def in_batches(items, size_of, most, budget):
        for batch in batched(items, size_of, workers, budget):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(survey, "in_batches", in_batches)
    parallel = survey_curves.in_parallel
    monkeypatch.setattr(survey_curves, "in_parallel", lambda function, tasks: parallel(function, tasks, workers))
    vgg_run.curves.unlink()
    planned(vgg_run)
    assert max(sizes) == workers
    with np.load(vgg_run.curves) as now, np.load(io.BytesIO(before)) as then:
        assert set(now) == set(then) and all(now[key].tobytes() == then[key].tobytes() for key in now)


def test_a_survey_that_was_stopped_goes_on_with_the_next_layer_and_ends_with_the_same_numbers(vgg_run, monkeypatch):
    before, folder = vgg_run.curves.read_bytes(), vgg_run.path / "curves"
    vgg_run.curves.unlink()
    measure, measured = survey._OutputChange.measure, []

    def stops(self, layer):
        measured.append(layer.name)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, layer)

    monkeypatch.setattr(survey._OutputChange, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        planned(vgg_run)
    assert len(list(folder.iterdir())) == 3 and not vgg_run.curves.exists()  # metrics and two layers
    done = measured[:2]
    monkeypatch.setattr(survey, "output_metrics", lambda *_, **__: pytest.fail("the metrics were kept"))
    planned(vgg_run)
    assert not set(done) & set(measured[3:]) and measured[3] == measured[2]
    assert not folder.exists()
    with np.load(vgg_run.curves) as now, np.load(io.BytesIO(before)) as then:
        different = [key for key in then if now[key].tobytes() != then[key].tobytes()]
        assert list(now) == list(then) and different == []


def test_error_curves_take_so_many_images_that_every_input_has_its_rows(vgg_run, monkeypatch):
    with open_run(vgg_run, Resources(torch.device("cpu"))) as opened:
        graph, frozen = opened.graph, opened.frozen
        layers = [layer for layer in graph.layers if layer.fitted and survey.steps_of(layer)]
        # Of 8 x 8 pixels and less: some layers have fewer positions than points.
        needed = [
            survey.ROWS_EACH * la.in_channels * la.kernel[0] * la.kernel[1]
            / min(frozen.meta["n_points"], la.calls[0][1][0] * la.calls[0][1][1])
            for la in layers
        ]  # fmt: skip
        monkeypatch.setattr(survey, "CURVE_IMAGES", 1)
        assert survey.curve_images(graph, frozen) == math.ceil(max(needed)) > 1
        monkeypatch.setattr(survey, "CURVE_IMAGES", 10**6)
        assert survey.curve_images(graph, frozen) == 10**6
