"""Input channels of layers chosen by a criterion: which ones, and what the layers come to."""

import json

import pytest
import torch
from safetensors import safe_open

from decomp.criteria.names import AS_SELECTORS, CRITERIA, NEEDS
from decomp.data.formats import network_file
from decomp.data.formats.frozen_file import FrozenFile
from decomp.data.formats.layer_file import read_layer
from decomp.graph.network_graph import NetworkGraph
from decomp.pipelines.decomposition.channel_scores import channel_scores
from decomp.pipelines.decomposition.gather import ProblemGatherer
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import SHAPE, Collected, bytes_of

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def selections(run):
    """The input channels that each pruned layer kept, and the report of each."""
    found = {}
    for path in sorted(run.layers_dir.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            parent = json.loads(file.metadata()["decomp"])["parent"]
        name = path.stem.partition("_")[2]
        solution, report = read_layer(path, parent, name)
        if solution.selection is not None:
            found[name] = solution.selection.channels, report["selection"]
    return found


@pytest.mark.parametrize("run", ["plain", "residual"], indirect=True)
def test_the_channels_with_the_highest_scores_of_the_original_stay(run):
    decompose(run, speedup=2, selector="l2", multiple=1, steps=("prune",), reporter=Collected())
    original, kept = network_file.load(run.original_dir), selections(run)
    spaces = NetworkGraph(original, SHAPE).spaces
    for name, (channels, report) in kept.items():
        (space,) = spaces.read_by(name)
        norms = sum(original.get_submodule(path).weight.detach().double().flatten(1).square().sum(1).sqrt()
                    for path in space.producers)  # fmt: skip
        wanted = norms.argsort(descending=True, stable=True)[: len(channels)].sort().values
        assert torch.equal(channels, wanted) and report["selector"] == "l2"
    assert len(kept) >= 2


@pytest.mark.parametrize("run", ["dense"], indirect=True)
def test_every_criterion_scores_every_layer_that_can_be_pruned(run):
    network = network_file.load(run.original_dir)
    with FrozenFile(run.frozen) as frozen:
        gatherer = ProblemGatherer(frozen, NetworkGraph(network, SHAPE))
        layers = {layer.name: layer.input_width for layer in gatherer.graph.layers if layer.input_space is not None}
        assert any(layer.input_space.sampled for layer in gatherer.graph.layers if layer.name in layers)
        for selector in (name for name in AS_SELECTORS if NEEDS[name] != "batchnorm"):
            found = channel_scores(gatherer, selector, layers)
            assert {name: len(values) for name, values in found.items()} == layers
            assert all(values.unique().numel() > 1 for values in found.values()), selector
        assert channel_scores(gatherer, "best", layers) == {}


@pytest.mark.parametrize("run", ["inverted"], indirect=True)
@pytest.mark.parametrize("selector", CRITERIA)
def test_every_criterion_of_prune_is_a_selector_and_its_layers_have_the_planned_cost(run, selector):
    made = decompose(run, speedup=1.5, selector=selector, multiple=1, steps=("prune",), refine=False,
                     reporter=Collected())  # fmt: skip
    kept = selections(run)
    assert kept and {report["selector"] for _, report in kept.values()} == {selector}
    assert 1.5 <= made.facts["macs_before"] / made.facts["macs_after"] < 2
    assert all(len(channels) < 24 for channels, _ in kept.values())


def test_a_resumed_run_makes_the_same_choice(run):
    options = {"speedup": 2, "selector": "taylor", "multiple": 1, "reporter": Collected()}
    decompose(run, **options)
    before = bytes_of(run)
    last = sorted(run.layers_dir.glob("*.safetensors"))[-1]
    last.unlink()
    run.update_config("decompose", None)
    decompose(run, **options)
    assert bytes_of(run) == before
