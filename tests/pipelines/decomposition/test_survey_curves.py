import pytest
import torch

from decomp.pipelines.decomposition import survey_curves
from decomp.pipelines.decomposition.gather import ProblemGatherer
from decomp.pipelines.decomposition.session import open_run
from decomp.pipelines.decomposition.survey_curves import changes_of_output, known_curves, steps_of
from decomp.pipelines.measure.resources import Resources
from decomp.solvers import elimination, error_curves, selection
from decomp.solvers.linalg import choose_ridge
from decomp.solvers.output_curves import measured_sizes


def test_the_measured_size_has_the_change_of_its_own_approximation(vgg_run):
    with open_run(vgg_run, Resources(torch.device("cpu"))) as opened:
        layers = [layer for layer in opened.graph.layers if layer.fitted][1:3]
        known = known_curves(ProblemGatherer(opened.frozen, opened.graph), [layers])
        changes = changes_of_output(
            lambda layer: lambda weight, bias: float(weight.norm() + bias.norm()), layers, known
        )
        assert {step for name, step in changes if name == layers[0].name} == set(steps_of(layers[0])) > set()
        for layer in layers:
            found, curve = changes[layer.name, "channel"], known[layer.name].curves["channel"]
            assert list(found) == measured_sizes(curve) and len(found) == 1
            for size, change in found.items():
                weight, bias = known[layer.name].approximate("channel", size)
                assert change == pytest.approx(float(weight.norm() + bias.norm()), rel=1e-6)


def test_a_layer_is_measured_once_and_has_the_change_of_that_step_at_the_same_error_in_all(vgg_run):
    measured = []
    with open_run(vgg_run, Resources(torch.device("cpu"))) as opened:
        layers = [layer for layer in opened.graph.layers if layer.fitted][1:3]
        known = known_curves(ProblemGatherer(opened.frozen, opened.graph), [layers])
        changes = changes_of_output(
            lambda layer: lambda weight, bias: measured.append(layer.name) or 0.3, layers, known
        )
    assert measured == [layer.name for layer in layers]
    for layer in layers:
        curves = known[layer.name].curves
        assert {step for name, step in changes if name == layer.name} == set(curves) > {"channel"}
        ((size, change),) = changes[layer.name, "channel"].items()
        assert change == 0.3
        for step, curve in curves.items():
            ((own, change),) = changes[layer.name, step].items()
            assert change / curve[own] == pytest.approx(0.3 / curves["channel"][size])


def test_a_layer_keeps_the_steps_that_can_be_applied(vgg_run):
    with open_run(vgg_run, Resources(torch.device("cpu"))) as opened:
        for layer in opened.graph.layers:
            assert set(steps_of(layer)) | set(layer.left_alone) == {"prune", "spatial", "channel"}
            assert not set(steps_of(layer)) & set(layer.left_alone)


def test_curves_and_approximations_take_the_ridge_of_the_elimination(vgg_run, monkeypatch):
    found = []
    with open_run(vgg_run, Resources(torch.device("cpu"))) as opened:
        layer = [layer for layer in opened.graph.layers if layer.fitted][1]
        problem, held_out = ProblemGatherer(opened.frozen, opened.graph).problem(layer)
    monkeypatch.setattr(elimination, "choose_ridge", lambda *moments: found.append(choose_ridge(*moments)) or found[-1])
    monkeypatch.setattr(error_curves, "ridge_value", lambda moments, ridge: used.append(ridge) or ridge)
    used = []
    curves, shared = survey_curves._own_curves(["prune", "spatial"], problem, held_out)
    assert used == 2 * found and len(found) == 1 and shared.ridge == found[0]
    passed = []
    monkeypatch.setattr(survey_curves, "approximations", lambda *_, **options: passed.append(options["ridge"]))
    survey_curves._approximate(problem, shared)
    assert passed == found
    monkeypatch.undo()
    assert shared.order == selection.retention_order(problem, "backward")
    wanted = error_curves.selection_curve(problem, held_out, order=shared.order)
    assert curves["prune"] == pytest.approx(wanted, rel=1e-6)
