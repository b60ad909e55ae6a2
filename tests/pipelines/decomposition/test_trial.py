"""Trial of a plan: the change of the outputs on held-out images, and the comparison of two of them."""

import pytest
import torch
import torch.nn.functional as F

from decomp.allocation.plan import LayerPlan
from decomp.data.formats import network_file
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.decomposition import trial
from decomp.pipelines.decomposition.session import narrow, open_run, survey
from decomp.pipelines.decomposition.trial import Judge, changes_of_plan, is_better, say_change
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.run.calibration import fitted_images
from tests.pipelines.digit_runs import Collected

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def test_a_plan_is_better_only_by_more_than_twice_the_standard_error_of_the_difference():
    one, other = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.5, 2.5, 3.5, 4.5])
    assert is_better(one, other) and not is_better(other, one) and not is_better(one, one)
    # mean 0.5, standard deviation 0.5 of the differences: standard error 0.5 / sqrt(n - 1), 0.289 and 0.189
    assert not is_better(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert is_better(torch.zeros(8), torch.tensor([0.0, 1.0] * 4))


def test_a_trial_is_told_with_its_mean_and_number_of_images():
    reporter = Collected()
    say_change("with all blocks", torch.tensor([0.25, 0.75]), reporter)
    assert reporter.messages == ["with all blocks: change of the outputs 0.5 on 2 held-out images"]


@pytest.mark.parametrize("chosen", [{}, {"activation_aware": False}, {"refine": False, "recovery": False}])
def test_layers_of_a_trial_are_fitted_as_the_options_say_with_channels_by_backward_elimination(
    blocks_run, monkeypatch, chosen
):
    options, fits = DecomposeOptions(speedup=2, selector="best", **chosen), []

    def fitted(gatherer, layer, sizes, settings, reported):
        assert gatherer.recovery == options.recovery and bool(gatherer.metrics) == options.refine and not reported
        fits.append((layer.name, sizes.layer, settings.selector, settings.activation_aware, settings.refined))
        return None, {}

    monkeypatch.setattr(trial, "fit_layer", fitted)
    monkeypatch.setattr(trial, "exchange_layer", lambda gatherer, solution: None)
    with open_run(blocks_run, Resources(torch.device("cpu"))) as opened:
        surveyed = survey(opened, narrow(opened, {}, reporter=Collected()), reporter=Collected())
        plans = {layer.name: LayerPlan(layer.name) for layer in surveyed.graph.layers}
        changes = changes_of_plan(surveyed, plans, options, Judge(opened))
    wanted = ("backward", options.activation_aware, options.refine)
    assert fits == [(name, name, *wanted) for name in plans] and changes.abs().max() < 1e-9


def test_at_most_some_of_the_held_out_images_are_judged_on(blocks_run, monkeypatch):
    monkeypatch.setattr(trial, "MOST_IMAGES", 7)
    with open_run(blocks_run, Resources(torch.device("cpu"), batch_size=5)) as opened:
        judge = Judge(opened)
        assert len(judge.places) == len(judge.changes(opened.original)) == 7
        assert judge.places.start == fitted_images(opened.frozen.n_images)


def test_the_change_is_the_divergence_on_held_out_images_and_grows_with_smaller_sizes(blocks_run):
    original, options = network_file.load(blocks_run.original_dir), DecomposeOptions(speedup=2)
    with open_run(blocks_run, Resources(torch.device("cpu"))) as opened:
        surveyed = survey(opened, narrow(opened, {}, reporter=Collected()), reporter=Collected())
        judge = Judge(opened)
        images = opened.frozen.images(fitted_images(opened.frozen.n_images), opened.frozen.n_images)
        broken = network_file.load(blocks_run.original_dir)
        with torch.no_grad():
            broken.get_submodule("head").bias[3] += 1
            p, q = F.log_softmax(original(images).double(), 1), F.log_softmax(broken(images).double(), 1)
        torch.testing.assert_close(judge.changes(broken), (p.exp() * (p - q)).sum(1), rtol=1e-4, atol=1e-7)

        def mean_change(**sizes):
            plans = {layer.name: LayerPlan(layer.name) for layer in surveyed.graph.layers}
            plans["b.conv2"] = LayerPlan("b.conv2", **sizes)
            return float(changes_of_plan(surveyed, plans, options, judge).mean())

        n_held_out, before = (
            opened.frozen.n_images - fitted_images(opened.frozen.n_images),
            opened.memory.forward_images,
        )
        judge.changes(original)
        assert opened.memory.forward_images == before + n_held_out
        weights = {name: value.clone() for name, value in surveyed.graph.module.state_dict().items()}
        whole, some, few = mean_change(), mean_change(channel_rank=4), mean_change(channel_rank=1)
        assert whole < 1e-5 < some < few and mean_change(keep=2) > 1e-4
        after = surveyed.graph.module.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in weights.items())
