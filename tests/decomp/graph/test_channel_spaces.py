"""Which channels stand or fall together, on graphs whose answer is known."""

import pytest
import torch
from small_graphs import INPUT, make
from torch import nn
from torch.nn import functional as F

from decomp.errors import DecompError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace


def spaces_of(module, shape=INPUT):
    return NetworkGraph(trace(module), shape).spaces


def facts(spaces):
    return {s.name: (s.width, s.producers, s.consumers, s.frozen) for s in spaces.all}


def test_a_residual_stream_is_one_space_of_all_its_writers():
    spaces = spaces_of(make("residual"))
    stream = spaces["stem"]
    assert stream.width == 16 and stream.frozen is None
    assert stream.producers == ("stem", "b.0", "d.0") and stream.consumers == ("a.0", "c.0", "head")
    assert stream.carriers == ("b.1", "d.1")
    assert sum("add" in words for words in stream.couplings) == 2
    assert spaces["a.0"].consumers == ("b.0",)


def test_concatenated_spaces_stay_apart_and_the_normalisation_behind_carries_all():
    spaces = spaces_of(make("dense"))
    assert [s.name for s in spaces.read_by("d")] == ["stem", "a", "c"]
    assert spaces["a"].carriers == ("b",) and spaces["stem"].carriers == ("b",) and spaces["c"].carriers == ()
    assert spaces["a"].consumers == ("c", "d", "head")


def test_a_gate_is_united_with_the_stream_it_scales():
    spaces = spaces_of(make("squeeze-excite"))
    assert spaces["a.0"].producers == ("a.0", "excite") and spaces["a.0"].frozen is None
    assert spaces["a.0"].consumers == ("squeeze", "b.0")


def test_groups_are_cut_whole_and_depthwise_is_carried():
    spaces = spaces_of(make("grouped"))
    assert spaces["a.0"].width == 4  # groups, of 6 channels each
    assert spaces["a.0"].producers == ("a.0", "b.0") and spaces["a.0"].consumers == ("b.0", "c.0")
    spaces = spaces_of(make("depthwise separable"))
    assert "depthwise.0" in spaces["expand.0"].carriers and spaces["expand.0"].consumers == ("project.0",)


def test_chunks_are_cut_alike():
    spaces = spaces_of(make("chunk"))
    assert spaces["a.0"].width == 12 and spaces["a.0"].frozen is None
    assert spaces["b.0"].width == 12


def test_a_module_called_twice_is_cut_once():
    spaces = spaces_of(make("twice"))
    assert spaces["stem"].producers == ("stem", "shared") and spaces["stem"].consumers == ("shared", "other")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: F.softmax(x, dim=1), "softmax"),
        (lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), "permute"),
        (lambda x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8), "reshaped to a fixed size"),
        (lambda x: x[:, :8].view(-1, 8, 8, 8), "fixed"),
        (lambda x: torch.cat([x[:, :4], x[:, 4:]], 1), "cut at fixed channels"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:-1], "pad"),
        (lambda x: F.layer_norm(x, (8, 8, 8)), "layer_norm"),
        (lambda x: x * torch.ones(8, 1, 1), "free tensor"),
        (lambda x: x.flatten(2).transpose(1, 2).reshape(x.shape), "transpose"),
        (lambda x: x * (1 / x.size(1)), "number of channels read"),
        (lambda x: x * x.shape[1:][0], "number of channels read"),
        (lambda x: x.flip(1), "flip"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_frozen_with_the_reason(body, reason):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.b(body(self.a(x)))

    spaces = spaces_of(Net(), (1, 8, 8))
    assert reason in spaces["a"].frozen
    assert all(space.frozen for space in spaces.read_by("b"))
    with pytest.raises(DecompError, match="a: must keep its 8 channels: it "):
        spaces.alive({"a": [0, 1]})


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x[:, :, ::2, 1:],
        lambda x: F.pad(x, (1, 1)),
        lambda x: F.interpolate(x, size=x.shape[-2:]),
        lambda x: x * torch.ones(1, 1, 1),
        lambda x: x.flatten(2).view(x.size(0), x.size(1), 8, 8),
        lambda x: x * x.amax((2, 3), keepdim=True),
        lambda x: x - x.mean(-1, keepdim=True).mean(-2, keepdim=True),
        lambda x: x.to(x.dtype) if False else x / 2,
    ],
)
def test_what_leaves_channels_alone_lets_them_go(body):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.b(body(self.a(x)))

    spaces = spaces_of(Net(), (1, 8, 8))
    assert spaces["a"].frozen is None and spaces["a"].consumers == ("b",)


def test_input_and_output_are_frozen():
    spaces = spaces_of(make("dilated"))
    assert spaces["x"].frozen == "is the image itself" and spaces["head"].frozen == "is the network's output"


def test_places_must_be_in_the_space():
    spaces = spaces_of(make("dilated"))
    for places in ([], [3, 2], [0, 20], [-1, 2]):
        with pytest.raises(DecompError, match=r"a\.0: channels to keep must ascend in 0\.\.19"):
            spaces.alive({"a.0": places})
    with pytest.raises(DecompError, match="nowhere: is not a channel space"):
        spaces.alive({"nowhere": [0]})
