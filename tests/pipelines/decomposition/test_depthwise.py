"""Refit of depthwise convolutions in the layer loop."""

import pytest
import torch
from torch import nn

from decomp.data.formats import network_file
from decomp.data.formats.frozen_file import FrozenFile
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition import layer_loop
from decomp.pipelines.decomposition.depthwise import refit_depthwise
from decomp.pipelines.decomposition.gather import ProblemGatherer
from decomp.pipelines.run.loading import open_frozen
from decomp.pipelines.stages.decompose import decompose
from decomp.surgery.apply_solution import apply_solution
from tests.pipelines.digit_runs import NETWORKS, SHAPE, Collected, bytes_of, make_run

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")
inverted = pytest.mark.parametrize("run", ["inverted"], indirect=True)
DEPTHWISE = ["blocks.0.3", "blocks.1.3"]


class Straight(nn.Module):
    """A depthwise convolution of two outputs a channel, without a bias, right behind the one that it reads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 3, padding=1)
        self.own = nn.Conv2d(5, 10, 3, stride=2, padding=1, groups=5, bias=False)
        self.head = nn.Linear(10, 10)

    def forward(self, x):
        return self.head(torch.relu(self.own(self.stem(x))).mean((2, 3)))


def test_a_depthwise_convolution_makes_up_for_inputs_of_another_scale(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "straight", Straight)
    frozen, original = open_frozen(make_run(tmp_path / "run", "straight", n_images=60))
    with frozen, torch.no_grad():
        graph = NetworkGraph(trace(original), SHAPE)
        layer, stem = graph.layer("own"), graph.module.get_submodule("stem")
        assert layer.depthwise and not layer.fitted
        scale = torch.linspace(0.3, 0.8, 5)
        stem.weight *= scale[:, None, None, None]
        stem.bias *= scale
        x = frozen.images(0, 60)
        assert (graph.module(x) - original(x)).abs().max() > 0.01
        solution, report = refit_depthwise(ProblemGatherer(frozen, graph), layer)
        apply_solution(graph.module, graph, solution)
        new, old = graph.module.get_submodule("own"), original.get_submodule("own")
        assert (new.groups, new.stride, new.padding, new.bias) == (5, (2, 2), (1, 1), None)
        torch.testing.assert_close(new.weight, old.weight / scale.repeat_interleave(2)[:, None, None, None])
        assert report["errors"]["before"]["held_out"] > 0.01 > 1e-6 > report["errors"]["refit"]["held_out"]
        torch.testing.assert_close(graph.module(x), original(x))


@inverted
def test_decompose_fits_depthwise_convolutions_behind_layers_that_changed(run):
    result = decompose(run, speedup=2, reporter=Collected())
    reports = {report["layer"]: report for report in result.facts["layers"]}
    assert [name for name in reports if name in DEPTHWISE] == DEPTHWISE
    second = reports["blocks.1.3"]["errors"]
    assert second["refit"]["fitted"] < second["before"]["fitted"]
    network, original = network_file.load(run.model_dir), network_file.load(run.original_dir)
    assert network.get_submodule("blocks.1.3").groups == network.get_submodule("blocks.1.3").in_channels
    with FrozenFile(run.frozen) as frozen, torch.no_grad():
        x = frozen.images(0, 360)
        off = (network(x) - original(x)).square().mean() / original(x).var(0).mean()
    assert off < 0.2


@inverted
def test_a_run_that_stopped_behind_a_depthwise_convolution_ends_with_the_same_bytes(run, tmp_path, monkeypatch):
    write, names = layer_loop.write_layer, []

    def stop(path, solution, report, parent):
        write(path, solution, report, parent)
        names.append(solution.name)
        if solution.name == "blocks.0.3":
            raise KeyboardInterrupt

    monkeypatch.setattr(layer_loop, "write_layer", stop)
    with pytest.raises(KeyboardInterrupt):
        decompose(run, speedup=2, reporter=Collected())
    begun = names.copy()
    monkeypatch.setattr(layer_loop, "write_layer", write)
    decompose(run, speedup=2, reporter=Collected())
    resumed = bytes_of(run)
    assert begun[-1] == "blocks.0.3"
    decompose(run, speedup=2, redo=True, reporter=Collected())
    assert bytes_of(run) == resumed
