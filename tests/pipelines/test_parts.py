"""Parts of a larger model, and modules that are not traced: frozen, decomposed, put back."""

import re
import shutil

import pytest
import torch
from networks import Detector, Gated, randomise
from torch import nn

import decomp
from benchmarks import coverage
from decomp.allocation.allocator import Allocator
from decomp.cost.count import cost
from decomp.cost.models import MacsCost
from decomp.data import models
from decomp.data.formats import network_file
from decomp.errors import FileError, TraceError, UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.reporting.summary import summarise
from decomp.pipelines.stages import freeze
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.evaluate import evaluate
from decomp.pipelines.stages.finetune import finetune
from decomp.pipelines.stages.inspection import inspect
from decomp.surgery import batchnorm

SHAPE = (1, 8, 8)


class Sized(nn.Module):
    """Pads small images."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        if x.shape[-1] < 10:
            x = nn.functional.pad(x, (1, 1, 1, 1))
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


NETWORKS = {"detector": Detector, "gated": Gated, "sized": Sized}


@pytest.fixture(autouse=True)
def known_networks(monkeypatch):
    def load(name, **options):
        return models.LoadedModel(randomise(NETWORKS[name]()), name, SHAPE, "0" * 64, "random")

    monkeypatch.setattr(models, "load_model", load)


def run_of(path, model, **options):
    quiet = Reporter(quiet=True)
    freeze.freeze(path, model=model, data="digits", n_images=100, reporter=quiet, **options)
    return decompose(path, speedup=2, reporter=quiet)


def test_a_part_with_several_outputs_is_compressed_and_put_back(tmp_path):
    with pytest.raises(TraceError, match="detector: the forward pass cannot be traced .*option module"):
        freeze.freeze(tmp_path / "whole", model="detector", data="digits", n_images=100, reporter=Reporter(quiet=True))
    result = run_of(tmp_path / "run", "detector", part="backbone")
    assert "into=model) puts backbone back" in result.lines()[-1]
    whole, x = randomise(Detector()), torch.randn(3, *SHAPE)
    treated, alone = decomp.load(tmp_path / "run", into=whole), decomp.load(tmp_path / "run")
    assert cost(alone, SHAPE).macs <= cost(whole.backbone, SHAPE).macs / 2
    with torch.no_grad():
        maps = alone(x)
        assert set(maps) == {"low", "high"}
        assert all(torch.allclose(maps[key], treated.backbone(x)[key], atol=1e-6) for key in maps)
        assert treated(x).shape == whole(x).shape
    assert torch.equal(treated.head.weight, whole.head.weight) and type(treated) is Detector
    assert torch.equal(decomp.load(tmp_path / "run", into=whole.backbone)(x)["low"], treated.backbone(x)["low"])
    with pytest.raises(UsageError, match="--labels train: .*class scores, got low: .* high: .*; give --labels none"):
        finetune(tmp_path / "run", reporter=Reporter(quiet=True))
    finetune(tmp_path / "run", epochs=1, labels="none", reporter=Reporter(quiet=True))
    tuned = decomp.load(tmp_path / "run" / "finetune" / "best", into=whole)
    with torch.no_grad():
        assert torch.allclose(tuned.backbone(x)["high"], decomp.load(tmp_path / "run")(x)["high"], atol=1e-6)
    rows = evaluate(tmp_path / "run", repeats=2, reporter=Reporter(quiet=True)).rows
    assert set(rows[1].outputs) == {"low", "high"} and rows[1].lost > 0 and rows[1].top1 is None
    again = decompose(tmp_path / "run", speedup=2, reporter=Reporter(quiet=True))
    assert again.done_before


def test_a_missing_part_is_refused_with_the_parts_that_exist(tmp_path):
    with pytest.raises(
        UsageError, match="--module: detector has no part of this name, it has backbone, head, got neck"
    ):
        run_of(tmp_path / "run", "detector", part="neck")


def test_a_leaf_stays_as_it_is_and_the_rest_is_compressed(tmp_path):
    with pytest.raises(TraceError, match=r"gated: .*cannot be traced at networks\.py"):
        freeze.freeze(tmp_path / "whole", model="gated", data="digits", n_images=100, reporter=Reporter(quiet=True))
    run_of(tmp_path / "run", "gated", leaves=("gate",))
    whole, x = randomise(Gated()), torch.randn(3, *SHAPE)
    with pytest.raises(FileError, match="gate: only its class Gate has this part of the network; load it into"):
        decomp.load(tmp_path / "run")
    treated = decomp.load(tmp_path / "run", into=whole)
    assert cost(treated, SHAPE).macs <= cost(whole, SHAPE).macs / 2
    assert torch.equal(treated.gate.scale, whole.gate.scale)
    alone = decomp.load(tmp_path / "run", leaves_of=whole)
    with torch.no_grad():
        assert torch.allclose(alone(x), treated(x), atol=1e-6)
    # What goes through the gate keeps its width; behind it channels go.
    assert treated.get_submodule("stem")(x).shape[1] == 12
    assert decompose(tmp_path / "run", speedup=2, reporter=Reporter(quiet=True)).done_before


def test_a_network_whose_control_flow_depends_on_the_input_size_is_compressed_with_a_note(tmp_path):
    frozen = freeze.freeze(tmp_path / "run", model="sized", data="digits", n_images=100, reporter=Reporter(quiet=True))
    said = r"control flow depends on the input size \(test_parts\.py:\d+\); the result is valid for 1x8x8 only"
    assert any(re.search(said, line) for line in frozen.lines())
    assert any(re.search(said, line) for line in inspect("sized").lines())
    assert not any("control flow depends" in line for line in inspect("gated", leaves=("gate",)).lines())
    result = decompose(tmp_path / "run", speedup=2, reporter=Reporter(quiet=True))
    whole, x = randomise(Sized()), torch.randn(3, *SHAPE)
    treated = decomp.load(tmp_path / "run", into=whole)
    with torch.no_grad():
        assert torch.allclose(decomp.load(tmp_path / "run")(x), treated(x), atol=1e-6)
        assert treated(torch.randn(3, 1, 20, 20)).shape == (3, 10)  # the class still goes by the size
    assert result.facts["macs_after"] <= result.facts["macs_before"] / 2


def test_a_network_with_a_leaf_goes_through_all_stages_into_its_class(tmp_path):
    quiet = Reporter(quiet=True)
    run_of(tmp_path / "run", "gated", leaves=("gate",))
    summary = summarise(tmp_path / "run")
    assert summary.macs_after <= summary.macs_before / 2 and "conv1" in [layer.layer for layer in summary.layers]
    tuned = finetune(tmp_path / "run", epochs=1, labels="none", reporter=quiet)
    assert not tuned.done_before and finetune(tmp_path / "run", epochs=1, labels="none", reporter=quiet).done_before
    rows = {row.network: row for row in evaluate(tmp_path / "run", repeats=2, reporter=quiet).rows}
    *_, last = rows.values()  # one epoch may not have improved the network, which then has no second row
    assert last.network != "original" and last.macs <= rows["original"].macs / 2
    whole, x = randomise(Gated()), torch.randn(3, *SHAPE)
    best = tmp_path / "run" / "finetune" / "best"
    treated, alone = decomp.load(best, into=whole), network_file.load(best, leaves_of=whole)
    with torch.no_grad():
        assert type(treated) is Gated and torch.allclose(alone(x), treated(x), atol=1e-6)
    with pytest.raises(FileError, match="gate: only its class Gate"):
        decomp.load(best)


def test_inspection_says_what_can_be_done_and_counts_what_cannot():
    result = inspect("gated", leaves=("gate",))
    lines = "\n".join(result.lines())
    assert "keeps its width: it goes through gate (Gate)" in lines and "gate: left alone: given as --leaf" in lines
    assert "of 4 layers 3 can be split spatially, 3 can be split by channels" in lines
    spaces = {space["name"]: space for space in result.to_json()["spaces"]}
    assert spaces["conv1"]["status"] == "narrowed with conv2"
    layers = {layer["name"]: layer for layer in result.to_json()["layers"]}
    assert layers["conv1"]["prune"] == "reads a subset of its 12 channels"
    assert sum(layer["share"] for layer in layers.values()) == pytest.approx(1)


def test_the_drawing_names_every_layer(tmp_path):
    result = inspect("detector", part="backbone", dot=tmp_path / "net.dot")
    text = (tmp_path / "net.dot").read_text()
    assert text.startswith("digraph") and text.count("{") == text.count("}") == 1
    assert all(f'"{layer["name"]}" [fillcolor' in text for layer in result.layers)
    assert '"stem" -> "space stem"' in text and '"space stem" -> "down"' in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_graphviz_draws_a_picture(tmp_path):
    result = inspect("detector", part="backbone", png=tmp_path / "net.png")
    assert result.written == [str(tmp_path / "net.png")]
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")


def segmentation():
    from torchvision.models.segmentation import fcn_resnet50

    return randomise(fcn_resnet50(weights=None, weights_backbone=None, num_classes=3)), (3, 64, 64)


def detection():
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    return randomise(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)), (3, 96, 96)


@pytest.mark.slow
@pytest.mark.parametrize("make", [segmentation, detection], ids=["fcn_resnet50", "ssdlite320"])
def test_backbones_of_torchvision_are_compressed_and_put_back(make, tmp_path):
    """The surgery and the way back; factors come from the weights alone, a full fit takes too long for a test."""
    whole, shape = make()
    network = trace(whole.backbone, "backbone")
    batchnorm.fold_bn(network)
    view = NetworkGraph(network, shape)
    counted = cost(network, shape)
    items = Allocator(view, coverage.flat_curves(view), MacsCost(view, counted.per_layer)).uniform(2)
    folded = [path for path, module in network.named_modules() if type(module) is nn.Identity]
    convs = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    edited = [*folded, *dict.fromkeys([*convs, *coverage.apply(network, view, items)])]
    network_file.save(network, tmp_path / "net", edited=edited, input_shape=shape, part="backbone")
    treated, x = decomp.load(tmp_path / "net", into=whole), torch.randn(2, *shape)
    assert cost(treated.backbone, shape).macs <= counted.macs / 2
    with torch.no_grad():
        before, after = whole(x), treated(x)
        maps, wanted = treated.backbone(x), decomp.load(tmp_path / "net")(x)
    assert type(before) is type(after) and len(before) == len(after)
    assert list(maps) == list(wanted)
    assert all((maps[k] - wanted[k]).abs().max() <= 1e-4 * wanted[k].abs().max() for k in maps)
