"""Compression of a network and images in memory: the network, its report, and mistakes."""

import copy
import json
import tempfile

import pytest
import shared_layers
import torch
from named_networks import INPUT, Slices, TwoNames, make
from networks import Block, block, chain
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import decomp
from decomp.cost import count as cost
from decomp.errors import FileError, NumericalError, TargetError, UsageError
from decomp.pipelines.recipes import compress as recipe

SHAPE = (3, 8, 8)


def images(n=60):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = block()
    before = copy.deepcopy(model.state_dict())
    folder = tmp_path_factory.mktemp("temporary")
    old, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        loader = DataLoader(TensorDataset(images(), torch.zeros(60)), batch_size=16)
        network, report = decomp.compress(model, loader, speedup=1.5, n_points=5)
    finally:
        tempfile.tempdir = old
    assert not list(folder.glob("decomp-*"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return model, network, report


def test_the_result_has_the_given_class_and_the_costs_of_the_report(made):
    model, network, report = made
    assert type(network) is Block and not network.training
    counted, original = cost.cost(network, SHAPE), cost.cost(model, SHAPE)
    assert (counted.macs, original.macs) == (report.macs_after, report.macs_before)
    assert 1.5 <= original.macs / counted.macs < 1.6  # sizes are coarse in so small a network
    assert counted.params == report.params_after


def test_costs_of_the_layers_add_up_to_those_of_the_network(made):
    model, network, report = made
    assert [item.layer for item in report.layers] == ["stem", "conv1", "conv2", "depthwise", "head"]
    assert sum(item.macs_before for item in report.layers) == report.macs_before
    assert sum(item.macs_after for item in report.layers) == report.macs_after
    assert sum(item.params_after for item in report.layers) == cost.cost(network, SHAPE).params
    kept = {item.layer: item for item in report.layers}["depthwise"]
    assert kept.macs_before == kept.macs_after and kept.becomes == "unchanged" and kept.error is None


def test_the_fidelity_of_the_report_is_measured_on_held_out_images(made):
    model, network, report = made
    assert report.fidelity["images"] == 6
    x = images(200)
    with torch.no_grad():
        wanted, got = model(x), network(x)
    relative = ((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()).item()
    assert report.fidelity["relative"] == pytest.approx(relative, rel=1.5)


def test_the_report_is_text_html_and_json(made):
    report = made[2]
    text, page = str(report), report._repr_html_()
    for item in report.layers:
        assert item.layer in text and f'<td style="text-align:left">{item.layer}</td>' in page
    assert "held-out" in text and "Block in memory" in text
    assert json.loads(json.dumps(report.to_json()))["macs_after"] == report.macs_after


def test_a_class_that_does_not_take_the_edits_gives_a_traced_network(tmp_path):
    from decomp.data.formats import network_file
    from decomp.graph.tracing import trace

    network = trace(block())
    network_file.save(network, tmp_path / "net", input_shape=SHAPE)
    other = chain()
    assert type(recipe._in_class_of(other, tmp_path / "net", SHAPE)) is not type(other)
    hooked = block()
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    alone = recipe._in_class_of(hooked, tmp_path / "net", SHAPE)
    assert torch.equal(alone(images(2)), network(images(2)))


@pytest.mark.parametrize("kind", [Slices, TwoNames])
def test_slices_and_modules_of_several_names_come_back_in_their_class(kind):
    model, x = make(kind), torch.randn(60, *INPUT, generator=torch.Generator().manual_seed(0))
    network, report = decomp.compress(model, x, speedup=2.0, n_points=5)
    assert type(network) is kind and cost.cost(network, INPUT).macs == report.macs_after
    assert network(x).shape == (60, 5)


def test_a_plan_from_a_file_decides_the_sizes(tmp_path, monkeypatch):
    plan, real = tmp_path / "plan.json", recipe.summarise

    def summarise(run):
        plan.write_bytes(run.plan_json.read_bytes())
        return real(run)

    monkeypatch.setattr(recipe, "summarise", summarise)
    _, report = decomp.compress(block(), images(), speedup=1.5, n_points=5)
    _, planned = decomp.compress(block(), images(), speedup=None, plan=plan, n_points=5)
    assert planned.macs_after == report.macs_after and [la.becomes for la in planned.layers] == [
        la.becomes for la in report.layers
    ]
    with pytest.raises(UsageError, match="--plan: says the speed-up itself, got --speedup 4x"):
        decomp.compress(block(), images(), speedup="4x", plan=plan)


def test_mistakes_are_one_line_each():
    with pytest.raises(UsageError, match="torch.nn.Module, got str"):
        decomp.compress("zoo:vgg-digits", images())
    with pytest.raises(UsageError, match="at least 10"):
        decomp.compress(block(), images(5))
    with pytest.raises(UsageError, match="--points: must be a whole number from 1, got 0"):
        decomp.compress(block(), images(), n_points=0)
    with pytest.raises(TargetError, match="1000x"):
        decomp.compress(block(), images(20), speedup=1000, n_points=2)
    bad = block()
    bad.stem.weight.data[0] = float("nan")
    with pytest.raises(NumericalError, match="Block"):
        decomp.compress(bad, images(20))
    with pytest.raises(UsageError, match="does not run on images of 3x8x6"):
        decomp.compress(block(), images(20)[..., :6])


def test_a_run_without_a_decomposition_has_no_summary(tmp_path):
    from decomp.pipelines.run.directory import RunDirectory

    RunDirectory.create(tmp_path / "run")
    with pytest.raises(FileError, match="no decomposed network yet"):
        decomp.summarise(tmp_path / "run")


@pytest.mark.parametrize("name", shared_layers.SHARED)
def test_layers_that_are_called_several_times_are_compressed_and_counted_at_every_call(name):
    model = shared_layers.make(name)
    images = torch.randn(60, *shared_layers.INPUT, generator=torch.Generator().manual_seed(0))
    network, report = decomp.compress(model, images, speedup=2.0)
    before, after = (cost.cost(module, shared_layers.INPUT) for module in (model, network))
    assert type(network) is type(model) and (report.macs_before, report.macs_after) == (before.macs, after.macs)
    assert 2.0 <= before.macs / after.macs < 2.3
    shared = {"siamese": "b", "pyramid": "tower", "recursive": "again"}[name]
    assert next(item for item in report.layers if item.layer == shared).becomes != "unchanged"


class Hybrid(nn.Module):
    """Convolutions and an attention over positions, which is half of the cost."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        t = self.b(self.a(x).relu()).relu().flatten(2).transpose(1, 2)
        t = torch.softmax(t @ t.transpose(1, 2), -1) @ t
        return self.out(t.mean(1))


def test_products_of_activations_count_as_cost_that_stays():
    model = Hybrid().eval()
    counted = cost.cost(model, SHAPE).per_layer
    stays = {"(products of activations)": 2 * 64 * 64 * 12}
    assert counted.items() >= stays.items()
    network, report = decomp.compress(model, images(), speedup=1.5)
    after = cost.cost(network, SHAPE)
    assert 1.5 <= sum(counted.values()) / after.macs < 1.7 and after.macs == report.macs_after
    unchanged = {item.layer: item for item in report.layers if item.kind == "other"}
    assert {name: (item.macs_before, item.becomes) for name, item in unchanged.items()} == {
        name: (macs, "unchanged") for name, macs in stays.items()
    }
    assert sum(item.macs_after for item in report.layers) == report.macs_after
    most = sum(counted.values()) / sum(stays.values())
    with pytest.raises(TargetError, match=r"at most \d\.\d+x can be reached.*outside the layers"):
        decomp.compress(model, images(), speedup=most)
