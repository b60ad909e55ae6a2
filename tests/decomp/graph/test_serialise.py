import copy
import json

import pytest
import torch
from networks import CHAIN_INPUT, block, chain
from torch import nn
from torch.nn import functional as F

from decomp.errors import DecompError, FileError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.serialise import build_graph, build_module, describe_graph, describe_module
from decomp.graph.tracing import trace

MODULES = [
    nn.Conv2d(2, 4, (3, 1), (2, 1), "valid", padding_mode="circular", bias=False), nn.Linear(3, 2), nn.PReLU(3),
    nn.BatchNorm2d(3, affine=False), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d((None, 2)), nn.Flatten(1),
    nn.Upsample(scale_factor=2, mode="bilinear"), nn.Dropout(0.3), nn.GroupNorm(1, 3), nn.LeakyReLU(0.3), nn.Identity(),
    nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6()), nn.ConvTranspose2d(2, 3, 2, output_padding=0), nn.Softmax(dim=1),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_modules_come_back_the_same(module):
    spec = json.loads(json.dumps(describe_module(module)))
    again = build_module(spec)
    assert repr(again) == repr(module)
    again.load_state_dict(module.state_dict())
    assert describe_module(again) == describe_module(module)


@pytest.mark.parametrize(("make", "shape"), [(chain, CHAIN_INPUT), (block, (3, 8, 8))])
def test_networks_come_back_bit_for_bit(make, shape):
    network = trace(make())
    description = json.loads(json.dumps(describe_graph(network)))
    again = build_graph(description, copy.deepcopy(network.state_dict()))
    x = torch.randn(3, *shape)
    assert torch.equal(again(x), network(x))
    assert not again.training


def test_free_tensors_slices_and_functions_come_back():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(1, 4, 1, 1))
            self.register_buffer("shift", torch.randn(1, 4, 1, 1))
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            y = F.interpolate(self.conv(x) * self.scale + self.shift, scale_factor=2.0, mode="nearest")
            a, b = torch.chunk(y, 2, dim=1)
            return torch.cat([a[:, :, 1:], b[..., 1:, :]], dim=1).clamp(min=-1.0).mean([2, 3])

    network = trace(Net())
    again = build_graph(json.loads(json.dumps(describe_graph(network))), network.state_dict())
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("module", [nn.Linear(6, 4), nn.Conv2d(3, 4, 3, bias=False), nn.ConvTranspose2d(3, 4, 2)])
def test_no_random_weights_are_drawn_for_layers_whose_weights_are_to_be_loaded(module):
    spec, before = describe_module(module), torch.get_rng_state()
    again = build_module(spec)
    assert torch.equal(torch.get_rng_state(), before)
    again.load_state_dict(module.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), module.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in again.parameters())
    with torch.device("meta"):
        assert build_module(spec).weight.is_meta


def test_classes_of_others_are_refused_by_name():
    class Mine(nn.Conv2d):
        pass

    with pytest.raises(DecompError, match=r"features\.3: only modules of torch.nn"):
        describe_module(Mine(1, 1, 1), "features.3")


HOSTILE = [
    ("function", lambda d: d["nodes"][1].update(op="call_function", target="torch.load", args=["/etc/passwd"])),
    ("function", lambda d: d["nodes"][1].update(op="call_function", target="os.system", args=["true"])),
    ("attribute", lambda d: d["nodes"][1].update(op="call_function", target="builtins.getattr", args=[1, "__class__"])),
    ("method", lambda d: d["nodes"][1].update(op="call_method", target="__reduce__")),
    ("operation", lambda d: d["nodes"][1].update(op="call_code")),
    ("torch.nn does not have", lambda d: d["modules"]["0"].update(type="Module_")),
    ("broken", lambda d: d["modules"]["0"]["args"].pop("in_channels")),
    ("disagree", lambda d: d["modules"]["0"]["args"].update(out_channels=3)),
    ("broken", lambda d: d["nodes"][1].update(args=[{"node": "nowhere"}])),
]  # fmt: skip


@pytest.mark.parametrize(("word", "spoil"), HOSTILE)
def test_hostile_and_broken_structures_are_refused(word, spoil):
    class Net(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    network = trace(Net(nn.Conv2d(1, 2, 1)))
    description = describe_graph(network)
    spoil(description)
    with pytest.raises(FileError, match=word):
        build_graph(description, network.state_dict())


def test_weights_of_another_shape_are_named():
    network = trace(chain())
    state = {**network.state_dict(), "0.weight": torch.zeros(1, 2, 3, 3)}
    with pytest.raises(FileError, match=r"0\.weight"):
        build_graph(describe_graph(network), state)


def test_functions_that_torchvision_keeps_whole_are_named_and_found_again():
    swin = pytest.importorskip("torchvision.models.swin_transformer")

    class Padded(nn.Module):
        def forward(self, x):
            return swin._patch_merging_pad(x)

    network = trace(Padded())
    description = describe_graph(network)
    (node,) = [node for node in description["nodes"] if node["op"] == "call_function"]
    assert node["target"] == "torchvision.models.swin_transformer._patch_merging_pad"
    x = torch.randn(1, 5, 5, 2)
    assert torch.equal(build_graph(description, {})(x), network(x))
    node["target"] = "torchvision.models.swin_transformer._log_api_usage_once"
    with pytest.raises(FileError, match="is not allowed"):
        build_graph(description, {})


class Line(nn.Module):
    """A reader of lines of text: convolutions, then a recurrent layer along the width."""

    def __init__(self, recurrent, how):
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.recurrent = recurrent
        self.out = nn.Linear(recurrent.hidden_size * (2 if recurrent.bidirectional else 1), 3)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        if self.how == "mean":
            return self.out(self.recurrent(x.mean(2).permute(0, 2, 1))[0])
        b, c, h, w = x.size()
        y, _ = self.recurrent(x.view(b, c * h, w).permute(2, 0, 1))
        return self.out(y.reshape(w * b, -1)).view(w, b, -1).permute(1, 0, 2)


@pytest.mark.parametrize(("kind", "options"), [
    (nn.LSTM, {"bidirectional": True}), (nn.LSTM, {"num_layers": 2, "bias": False}), (nn.GRU, {"num_layers": 2}),
    (nn.RNN, {"nonlinearity": "relu"}),
])  # fmt: skip
@pytest.mark.parametrize("how", ["mean", "view"])
def test_recurrent_layers_behind_convolutions_come_back(kind, options, how):
    recurrent = kind(6 if how == "mean" else 24, 5, batch_first=how == "mean", **options)
    network, x = Line(recurrent, how).eval(), torch.randn(2, 1, 4, 9)
    traced = trace(network, shape=(1, 4, 9))
    again = build_graph(json.loads(json.dumps(describe_graph(traced))), traced.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), network(x)) and torch.equal(traced(x), network(x))
    assert repr(again.recurrent) == repr(recurrent)
    layers = {layer.name: layer for layer in NetworkGraph(traced, (1, 4, 9)).layers}
    assert layers["b"].input_space.producer == "a" and layers["b"].fitted


def test_a_projected_lstm_comes_back():
    module = nn.LSTM(4, 6, proj_size=2, dropout=0.5, num_layers=2)
    assert repr(build_module(describe_module(module))) == repr(module)
