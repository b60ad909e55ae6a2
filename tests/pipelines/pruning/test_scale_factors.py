"""Scale factors of the input channels of layers: read before they are folded, with the channels that remain."""

import pytest
import torch
from networks import randomise
from torch import nn

from decomp.errors import UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.pipelines.pruning.scale_factors import input_scales, network_with_scales
from decomp.pipelines.pruning.unfolded import folded_copy, unfolded
from decomp.pipelines.recipes.compress import compress
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from decomp.surgery.narrow_network import shrink
from tests.pipelines.decomposition.test_channel_scores import selections
from tests.pipelines.digit_runs import SHAPE, Collected

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


class Joined(nn.Module):
    """One reader of scaled channels alone, one of these and others, one behind a flatten."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.c = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(11, 4, 3, padding=1)
        self.last = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = torch.cat([x, torch.relu(self.b(x))], 1)
        return self.head(nn.functional.max_pool2d(torch.relu(self.last(self.c(x))), 4).flatten(1))


@pytest.fixture
def joined():
    source = unfolded(randomise(Joined()), "joined", SHAPE)
    return source, {layer.name: layer for layer in NetworkGraph(folded_copy(source.network), SHAPE).layers}


def test_a_layer_has_the_absolute_scale_factors_of_what_it_reads_or_is_left_out_where_some_have_none(joined):
    source, layers = joined
    source.network.norm.weight.data[2] *= -1
    found = input_scales(source, layers.values(), {})
    assert set(found) == {"b", "head"}  # a reads the image, c the channels of b too
    assert torch.equal(found["b"], source.network.norm.weight.detach().abs().double())
    assert torch.equal(found["head"], source.network.last.weight.detach().abs().double())


def test_channels_that_a_layer_lost_have_no_number(joined):
    source, _ = joined
    narrow = folded_copy(source.network)
    shrink(narrow, NetworkGraph(narrow, SHAPE).spaces, {"a": [0, 3, 4]})
    layers = NetworkGraph(narrow, SHAPE).layers
    found = input_scales(source, layers, {"a": torch.tensor([0, 3, 4])})
    assert torch.equal(found["b"], source.network.norm.weight.detach()[[0, 3, 4]].double())


def test_layers_of_partly_scaled_networks_take_the_default_selector_and_are_told(tmp_path):
    _, report = compress(
        randomise(Joined()), torch.randn(60, *SHAPE), 2, selector="bn-scale", multiple=1, steps=("prune",),
        run=tmp_path / "run", quiet=True,
    )  # fmt: skip
    run = RunDirectory.open(tmp_path / "run")
    chosen = {name: entry["selector"] for name, (_, entry) in selections(run).items()}
    assert chosen["b"] == "bn-scale" and chosen["c"] in ("lasso", "backward")
    assert report.macs_before / report.macs_after >= 2
    with pytest.raises(UsageError, match="only the Python session that froze it has"):
        network_with_scales(run)
    assert "chosen by selector best: c" in run.log.read_text()


@pytest.mark.parametrize("run", ["inverted"], indirect=True)
def test_the_channels_with_the_largest_scale_factors_stay(run):
    decompose(run, speedup=1.5, selector="bn-scale", multiple=1, steps=("prune",), reporter=Collected())
    network, kept = network_with_scales(run).network, selections(run)
    assert kept
    for name, (channels, _) in kept.items():
        block = name.split(".")[1]
        scales = sum(network.get_submodule(f"blocks.{block}.{place}").weight.abs() for place in (1, 4))
        wanted = scales.argsort(descending=True, stable=True)[: len(channels)].sort().values
        assert torch.equal(channels, wanted)


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_a_network_without_scale_factors_is_refused_before_the_run_is_changed(run):
    with pytest.raises(UsageError, match="--selector: bn-scale compares .* and residual has none; .*l2"):
        decompose(run, speedup=2, selector="bn-scale", reporter=Collected())
    assert run.config("decompose") is None
    decompose(run, speedup=1.5, selector="l2", reporter=Collected())
