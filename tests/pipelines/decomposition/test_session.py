"""Session of a run: opened, narrowed, surveyed."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import FileError
from decomp.pipelines.decomposition import session
from decomp.pipelines.decomposition.session import narrow, open_run, survey
from decomp.pipelines.measure.resources import Resources
from tests.pipelines.digit_runs import SHAPE, Collected

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")
CPU = torch.device("cpu")


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_an_opened_run_holds_the_original_and_a_copy_for_the_changes(run):
    images = torch.randn(3, *SHAPE)
    with open_run(run, Resources(CPU)) as opened:
        assert opened.cost == cost(network_file.load(run.original_dir), SHAPE)
        with torch.no_grad():
            before = opened.original(images)
            assert torch.equal(opened.graph.module(images), before)
            opened.graph.module.get_submodule("stem").weight.zero_()
            assert torch.equal(opened.original(images), before)
        scratch = [path for path in run.path.iterdir() if "scratch" in path.name]
        with pytest.raises(FrozenInstanceError):
            opened.graph = None
    assert not any(path.exists() for path in scratch)


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_points_without_the_values_of_shortcuts_are_refused(run, monkeypatch):
    monkeypatch.setattr(session, "shortcut_key", lambda name: f"{name}: in a file of an earlier version")
    with pytest.raises(
        FileError, match="must hold the responses 'conv2: in a file of an earlier version'.*run freeze again"
    ):
        with open_run(run, Resources(CPU)):
            pass


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_narrowing_takes_channels_out_of_all_layers_at_a_space_and_counts_anew(run):
    reporter = Collected()
    with open_run(run, Resources(CPU)) as opened:
        whole = narrow(opened, {}, reporter=reporter)
        assert whole.graph is opened.graph and whole.macs_by_layer == opened.cost.per_layer and reporter.messages == []
        narrowed = narrow(opened, {"stem": 6}, reporter=reporter)
        module, channels = narrowed.graph.module, narrowed.channels["stem"]
        assert narrowed.widths == {"stem": 6} and len(set(channels)) == 6
        assert [module.get_submodule(name).out_channels for name in ("stem", "conv1", "conv2")] == [6, 12, 6]
        assert module.get_submodule("head").in_features == 6
        assert set(narrowed.edited) == {"stem", "conv1", "conv2", "head"}
        original = opened.original.get_submodule("stem").weight
        assert torch.equal(module.get_submodule("stem").weight, original[channels])
        assert {name: places.tolist() for name, places in narrowed.remaining_outputs.items()} == {
            "stem": channels, "conv2": channels,
        }  # fmt: skip
        assert narrowed.macs_by_layer == cost(module, SHAPE).per_layer
        assert sum(narrowed.macs_by_layer.values()) < opened.cost.macs


@pytest.mark.parametrize("run", ["dense"], indirect=True)
def test_both_settings_of_the_sampler_share_one_survey(run):
    with open_run(run, Resources(CPU)) as opened:
        narrowed = narrow(opened, {}, reporter=Collected())
        sampled = survey(opened, narrowed, reporter=Collected())
        before = run.curves.read_bytes()
        private = survey(opened, narrowed, sampler=False, reporter=Collected())
    assert run.curves.read_bytes() == before
    assert sampled.graph.layer("convs.2").input_space.sampled
    assert private.graph.layer("convs.2").input_space is None
    assert private.survey.own["convs.2"].prune is not None  # the graph decides, not the survey


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_another_choice_of_channels_is_another_survey(run):
    reporter = Collected()
    with open_run(run, Resources(CPU)) as opened:
        survey(opened, narrow(opened, {}, reporter=reporter), reporter=reporter)
        before = run.curves.read_bytes()
        surveyed = survey(opened, narrow(opened, {"stem": 6}, reporter=reporter), reporter=reporter)
    assert run.curves.read_bytes() != before
    assert any("made from other frozen points" in line for line in reporter.messages)
    assert len(surveyed.survey.metrics["stem"]) == 6 and len(surveyed.survey.metrics["conv1"]) == 12
