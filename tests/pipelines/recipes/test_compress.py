"""Compression of a network and images in memory: the network, its report, and mistakes."""

import copy
import json
import tempfile
from collections import namedtuple

import pytest
import shared_layers
import torch
from named_networks import INPUT, Slices, TwoNames, make
from networks import UPWARD_INPUT, Block, Detector, Gated, block, upward
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import decomp
from decomp.cost import count as cost
from decomp.errors import FileError, NumericalError, TargetError, TraceError, UsageError
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
    assert kept.macs_before == kept.macs_after and kept.becomes == "unchanged"
    assert 0 < kept.error < 1  # its kernels are fitted again


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
    with pytest.raises(UsageError, match="plan: says the speed-up itself, got speedup 4x"):
        decomp.compress(block(), images(), speedup="4x", plan=plan)


def test_mistakes_are_one_line_each():
    with pytest.raises(UsageError, match="torch.nn.Module, got 'zoo:vgg-digits'"):
        decomp.compress("zoo:vgg-digits", images())
    with pytest.raises(UsageError, match="at least 10"):
        decomp.compress(block(), images(5))
    with pytest.raises(UsageError, match="^n_points: must be a whole number from 1, got 0"):
        decomp.compress(block(), images(), n_points=0)
    with pytest.raises(TargetError, match="1000x"):
        decomp.compress(block(), images(20), speedup=1000, n_points=2)
    bad = block()
    bad.stem.weight.data[0] = float("nan")
    with pytest.raises(NumericalError, match="Block"):
        decomp.compress(bad, images(20))
    with pytest.raises(UsageError, match="does not run on images of 3x8x6.*give input_size or other images"):
        decomp.compress(block(), images(20)[..., :6])
    for speedup in ("two", None, [2], 1):
        with pytest.raises(UsageError, match="^speedup: must be a number above 1"):
            decomp.compress(block(), images(20), speedup)
    for name, fix in {"part": "module", "points": "n_points", "step": "steps", "skipbad": "skip_bad"}.items():
        with pytest.raises(UsageError, match=f"^{name}: is no option of compress; did you mean {fix}"):
            decomp.compress(block(), images(20), **{name: 1})
    weights = block().state_dict()
    ways = {"load_state_dict": weights, r"such as Block\(\)": Block, "decomp.freeze": "zoo:vgg-digits"}
    for way, model in ways.items():
        with pytest.raises(UsageError, match=f"^model: must be a torch.nn.Module, got .*; .*{way}"):
            decomp.compress(model, images(20))


@pytest.fixture(scope="module")
def plain():
    """The result for a network in float32."""
    return decomp.compress(block(), images(40), 1.5, n_points=3, quiet=True)[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_comes_back_in_the_precision_in_which_it_came(dtype, tmp_path):
    # Weights in half precision are others, and of two plans of nearly the same loss the other one may be the better.
    plain = decomp.compress(block(), images(40), 1.5, n_points=3, quiet=True, run=tmp_path / "plain")[0]
    same = {"plan": tmp_path / "plain" / "plan.json", "n_points": 3, "quiet": True}
    network, _ = decomp.compress(nn.DataParallel(block().to(dtype)), images(40), None, **same)
    assert type(network) is Block
    assert all(value.dtype == dtype for value in network.state_dict().values())
    x = images().to(dtype)
    assert torch.allclose(network(x).float(), plain(images()), atol=0.02 if dtype == torch.float16 else 1e-5)
    decomp.save(network, tmp_path / "net")
    assert torch.equal(decomp.load(tmp_path / "net")(x), network(x))


def test_a_network_with_channels_last_comes_back_so(plain):
    model = block().to(memory_format=torch.channels_last)
    network, _ = decomp.compress(model, images(40), 1.5, n_points=3, quiet=True)
    assert network.stem.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in network.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])


def test_a_part_is_compressed_inside_the_bigger_model_and_leaves_stay(tmp_path):
    torch.manual_seed(0)
    grey = torch.randn(40, 1, 8, 8)
    detector = Detector().eval()
    network, report = decomp.compress(detector, grey, 1.5, module="backbone", n_points=3, quiet=True)
    assert type(network) is Detector and torch.equal(network.head.weight, detector.head.weight)
    assert str(report).startswith("Detector in memory, backbone alone: ")
    assert cost.cost(network.backbone, (1, 8, 8)).macs == report.macs_after < report.macs_before
    decomp.save(network, tmp_path / "part")
    whole = decomp.load(tmp_path / "part", into=detector)
    assert torch.equal(whole(grey), network(grey))
    with pytest.raises(TraceError, match=r"Gated: .*\(leaves\).*\(module\)"):
        decomp.compress(Gated(), grey, 1.3, quiet=True)
    gated, _ = decomp.compress(Gated(), grey, 1.3, leaves="gate", n_points=3, quiet=True)
    assert type(gated) is Gated and 1.3 <= cost.cost(Gated(), (1, 8, 8)).macs / cost.cost(gated, (1, 8, 8)).macs < 2
    decomp.save(gated, tmp_path / "gated")
    assert torch.equal(decomp.load(tmp_path / "gated", into=Gated())(grey), gated(grey))


def test_images_are_resized_and_bad_ones_left_out():
    x = images(40)
    x[3, 0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"in 1 of 40 images \(3\); .*leave them out with skip_bad=True"):
        decomp.compress(block(), x, 1.5)
    _, report = decomp.compress(block(), x[..., ::2, ::2], 1.5, input_size=8, skip_bad=True, n_points=3, quiet=True)
    assert report.macs_before == cost.cost(block(), SHAPE).macs and report.fidelity["images"] == 3  # of 39
    with pytest.raises(UsageError, match="^input_size: an input size is"):
        decomp.compress(block(), images(), 1.5, input_size="big")


def test_a_run_that_is_kept_is_continued_and_serves_the_stages(tmp_path, capsys):
    model, run = block(), tmp_path / "run"
    network, report = decomp.compress(model, images(), 1.5, n_points=5, run=run)
    shown = capsys.readouterr()
    assert "plan: " in shown.err and not shown.out
    frozen = (run / "frozen.h5").stat().st_mtime_ns
    again, _ = decomp.compress(model, images(), 1.5, n_points=5, run=run, quiet=True)
    assert (run / "frozen.h5").stat().st_mtime_ns == frozen and not capsys.readouterr().err
    assert torch.equal(network(images()), again(images()))
    with pytest.raises(UsageError, match="with speedup 1.5, got speedup 1.8; use redo=True to replace it"):
        decomp.compress(model, images(), 1.8, n_points=5, run=run)
    with pytest.raises(UsageError, match="was frozen with other training images"):
        decomp.compress(model, images() + 1, 1.5, n_points=5, run=run)
    other, _ = decomp.compress(model, images(), 1.8, n_points=5, run=run, redo=True, quiet=True)
    assert cost.cost(other, SHAPE).macs < cost.cost(network, SHAPE).macs
    with pytest.raises(UsageError, match="labels none"):
        decomp.finetune(run, epochs=1)
    rows = decomp.evaluate(run, repeats=3).rows
    assert [row.macs for row in rows] == [report.macs_before, cost.cost(other, SHAPE).macs]
    assert torch.equal(decomp.load(run, into=Block())(images()), decomp.load(run)(images()))
    with pytest.raises(UsageError, match=r"Block in memory: was given as a module.*into=model"):
        decomp.data.models.load_model("Block in memory")


def test_doubts_about_the_original_are_in_the_report_of_a_quiet_call():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    images = torch.randn(1, 3, 8, 8).repeat(30, 1, 1, 1)
    _, report = decomp.compress(network.eval(), images, speedup=1.5, quiet=True)
    assert "warning: output is the same for all images" in str(report)
    assert "of their variance" not in str(report)


def test_no_line_names_the_temporary_folder(capsys):
    decomp.compress(block(), images(40), 1.5, n_points=3)
    shown = capsys.readouterr().err
    assert "in the original class" in shown and "tmp" not in shown and "cannot be built" not in shown


def test_a_run_without_a_decomposition_has_no_summary(tmp_path):
    from decomp.pipelines.run.directory import RunDirectory

    RunDirectory.create(tmp_path / "run")
    with pytest.raises(FileError, match="no decomposed network yet"):
        decomp.summarise(tmp_path / "run")


@pytest.mark.parametrize("name", [*shared_layers.SHARED, "folded"])
def test_layers_that_are_called_several_times_are_compressed_and_counted_at_every_call(name):
    model = shared_layers.make(name)
    images = torch.randn(60, *shared_layers.INPUT, generator=torch.Generator().manual_seed(0))
    network, report = decomp.compress(model, images, speedup=2.0)
    before, after = (cost.cost(module, shared_layers.INPUT) for module in (model, network))
    assert type(network) is type(model) and (report.macs_before, report.macs_after) == (before.macs, after.macs)
    assert 2.0 <= before.macs / after.macs < 2.3
    shared = {"siamese": "b", "folded": "b", "pyramid": "tower", "recursive": "again"}[name]
    assert next(item for item in report.layers if item.layer == shared).becomes != "unchanged"


@pytest.mark.parametrize("batch_size", [7, 60])
def test_an_encoder_on_a_batch_of_both_halves_is_fitted_as_one_that_is_called_on_each(batch_size):
    images = torch.randn(60, *shared_layers.INPUT, generator=torch.Generator().manual_seed(0))
    results = {}
    for name, size in (("siamese", 60), ("folded", batch_size)):
        network, report = decomp.compress(shared_layers.make(name), images, 2.0, batch_size=size, quiet=True)
        results[name] = report, network(images)
    (called, wanted), (folded, got) = results.values()
    assert [item.becomes for item in folded.layers] == [item.becomes for item in called.layers]
    assert folded.macs_after == called.macs_after
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


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


class Normed(nn.Conv2d):
    """A convolution that goes on with a normalisation and an activation, as some libraries have it."""

    def __init__(self, *args, norm, **options):
        super().__init__(*args, **options)
        self.norm = norm

    def forward(self, x):
        x = nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return nn.functional.relu(self.norm(x)) * torch.tensor([2.0])


def test_convolutions_of_another_class_and_computed_weights_are_compressed_in_the_class_of_the_network(tmp_path):
    torch.manual_seed(0)
    layers = [Normed(i, 16, 3, padding=1, bias=False, norm=nn.BatchNorm2d(16)) for i in (3, 16)]
    last = parametrizations.weight_norm(nn.Conv2d(16, 16, 3))
    model = nn.Sequential(*layers, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    state, images = copy.deepcopy(model.state_dict()), torch.randn(60, 3, 12, 12)
    network, report = decomp.compress(model, images, 2.0, n_points=4)
    assert type(network) is nn.Sequential and type(network[0]) is not Normed and type(model[0]) is Normed
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        error = (network(images) - model(images)).var() / model(images).var()
    assert error < 0.5 and report.macs_before >= 2 * report.macs_after
    decomp.save(network, tmp_path / "kept")
    for again in (decomp.load(tmp_path / "kept"), decomp.load(tmp_path / "kept", into=model)):
        with torch.no_grad():
            assert torch.allclose(again(images), network(images), atol=1e-5)


def test_a_generator_of_transposed_convolutions_whose_outputs_depend_on_few_is_compressed_without_a_loss():
    model, shape, generator = upward(), UPWARD_INPUT, torch.Generator().manual_seed(1)
    for name in ("3", "5"):
        layer = model.get_submodule(name)
        mixed = torch.randn(2, layer.out_channels, generator=generator)
        layer.weight.data = torch.einsum("crhw,rn->cnhw", layer.weight.data[:, :2], mixed)
    latent = torch.randn(200, *shape, generator=generator)
    network, report = decomp.compress(model, latent, speedup=1.6)
    before, after = cost.cost(model, shape), cost.cost(network, shape)
    assert (report.macs_before, report.macs_after) == (before.macs, after.macs)
    assert 1.6 <= before.macs / after.macs < 1.8
    with torch.no_grad():
        wanted, got = model(latent[180:]), network(latent[180:])
    assert (got - wanted).square().mean() < 0.01 * (wanted - wanted.mean(0)).square().mean()
    split = network.get_submodule("5")
    assert [type(part) for part in split] == [nn.ConvTranspose2d, nn.Conv2d] and len(split[0].weight[0]) == 2


def test_a_network_that_returns_a_namedtuple_is_compressed_in_its_class():
    Found = namedtuple("Found", ["scores", "maps"])

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)

        def forward(self, x):
            maps = self.b(self.a(x).relu()).relu()
            return Found(self.out(maps.mean((2, 3))), {"maps": maps, "pair": Found(None, maps[:, :2])})

    torch.manual_seed(0)
    network, report = decomp.compress(Named().eval(), torch.randn(60, 3, 10, 10), 1.5, quiet=True)
    assert type(network) is Named and isinstance(network(torch.randn(1, 3, 10, 10)), Found)
    assert list(report.fidelity["outputs"]) == ["0", "1.maps", "1.pair.1"]
