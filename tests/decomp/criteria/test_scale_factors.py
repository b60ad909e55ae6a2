"""Scale factors by which channels can be removed: cut behind a convolution, selected behind a stream, or neither."""

import pytest
import torch
from networks import randomise
from preactivation import SHAPE, Bottleneck, Plain, images, preactivation
from torch import nn

from decomp.criteria.scale_factors import scaled_channels
from decomp.criteria.scores import score
from decomp.data import zoo
from decomp.graph.tracing import trace


def found(network, shape=SHAPE, **options):
    return scaled_channels(trace(network), shape, **options)


def by_path(scaled):
    return {entry.path: (entry.how, entry.space) for entry in scaled.factors}


def test_in_a_plain_network_every_scale_factor_cuts_the_convolution_before_it():
    scaled = found(zoo.build("vgg-digits"), (1, 8, 8))
    assert by_path(scaled) == {path: ("cut", str(int(path) - 1)) for path in ("1", "4", "8", "11")}
    assert scaled.left_out == {} and scaled.spaces == ["0", "3", "7", "10"]


def test_a_normalisation_of_a_stream_selects_and_the_inner_ones_cut():
    scaled = found(preactivation(Bottleneck(), Plain(64)))
    assert by_path(scaled) == {
        "block0.bn1": ("select", "block0.bn1.select"), "block0.bn2": ("cut", "block0.conv1"),
        "block0.bn3": ("cut", "block0.conv2"), "block1.bn1": ("select", "block1.bn1.select"),
        "block1.bn2": ("cut", "block1.conv1"), "norm": ("select", "norm.select"),
    }  # fmt: skip
    assert scaled.left_out == {}
    network = preactivation(Bottleneck(), Plain(64))
    assert torch.equal(scaled.network(images()), trace(network)(images()))


def test_every_layer_of_a_dense_block_selects():
    """Each convolution's outputs are read by several normalisations, of which each has its own opinion of them."""
    scaled = found(zoo.build("densenet-fashion", 10, (1, 8, 8)), (1, 8, 8))
    assert {entry.how for entry in scaled.factors} == {"select"} and len(scaled.factors) == 15
    assert scaled.left_out == {}


def test_scale_factors_before_a_sum_judge_no_channel_alone():
    scaled = found(zoo.build("resnet20-fashion"), (1, 28, 28))
    assert all(how == "cut" for how, _ in by_path(scaled).values())
    assert set(by_path(scaled)) == {f"{block}.bn1" for block in range(3, 12)}
    assert all(reason.endswith("a sum unites") for reason in scaled.left_out.values()) and len(scaled.left_out) == 12
    coupled = found(zoo.build("resnet20-fashion"), (1, 28, 28), coupled=True)
    assert by_path(coupled)["3.bn2"] == by_path(coupled)["1"] == ("cut", "0") and coupled.left_out == {}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)], "is the image itself"),
        ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)], "is the network's output"),
        ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Softmax(1), nn.Conv2d(4, 2, 1)], "Softmax"),
        ([nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 2, 1)], "has one channel"),
    ],
)
def test_channels_that_must_stay_are_left_out_with_the_reason(body, reason):
    scaled = found(nn.Sequential(*body))
    assert scaled.factors == () and len(scaled.left_out) == 1
    assert reason in next(iter(scaled.left_out.values()))


def test_a_scale_that_the_next_layer_can_undo_is_left_out():
    """Between them only linear operations: γ divided and the weights multiplied by a number change nothing."""
    linear = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 1)]
    bent = [*linear[:3], nn.ReLU(), *linear[3:]]
    tail = [nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(45, 2)]
    assert found(nn.Sequential(*linear, *tail)).left_out == {
        "1": "is read by 4 without an activation in between, which can undo its scale"
    }
    assert list(by_path(found(nn.Sequential(*bent, *tail)))) == ["1", "6"]


def test_channels_that_are_also_read_past_the_normalisation_are_selected_not_cut():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.left(torch.relu(self.norm(x))) + self.right(x)

    assert by_path(found(Two())) == {"norm": ("select", "norm.select")}


def test_a_normalisation_that_is_called_twice_is_left_out():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.last(torch.relu(self.norm(self.conv(torch.relu(self.norm(self.conv(x)))))))

    assert found(Twice()).left_out == {"norm": "is called more than once"}


def test_neurons_of_linear_layers_are_channels():
    body = [nn.Flatten(), nn.Linear(108, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)]
    assert by_path(found(nn.Sequential(*body))) == {"2": ("cut", "1")}


def test_the_criterion_ranks_selected_channels_by_their_own_scale_factors():
    network = randomise(preactivation(Bottleneck()))
    scaled = found(network)
    scores = score(scaled.network, scaled.graph.spaces, scaled.spaces, "bn-scale")
    assert torch.equal(scores["block0.bn1.select"], network.block0.bn1.weight.detach().double().abs())
    assert torch.equal(scores["block0.conv1"], network.block0.bn2.weight.detach().double().abs())
