"""Trial of a plan: its layers fitted as the options say, and the change of the outputs."""

import pytest
import torch

from decomp.allocation.plan import LayerPlan
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.decomposition import trial
from decomp.pipelines.decomposition.judge import Judge
from decomp.pipelines.decomposition.session import narrow, open_run, survey
from decomp.pipelines.decomposition.trial import changes_of_plan
from decomp.pipelines.measure.resources import Resources
from tests.pipelines.digit_runs import Collected

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


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


def test_the_change_grows_with_smaller_sizes_and_the_network_stays(blocks_run):
    options = DecomposeOptions(speedup=2)
    with open_run(blocks_run, Resources(torch.device("cpu"))) as opened:
        surveyed = survey(opened, narrow(opened, {}, reporter=Collected()), reporter=Collected())
        judge = Judge(opened)

        def mean_change(**sizes):
            plans = {layer.name: LayerPlan(layer.name) for layer in surveyed.graph.layers}
            plans["b.conv2"] = LayerPlan("b.conv2", **sizes)
            return float(changes_of_plan(surveyed, plans, options, judge).mean())

        weights = {name: value.clone() for name, value in surveyed.graph.module.state_dict().items()}
        whole, some, few = mean_change(), mean_change(channel_rank=4), mean_change(channel_rank=1)
        assert whole < 1e-5 < some < few and mean_change(keep=2) > 1e-4
        after = surveyed.graph.module.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in weights.items())
