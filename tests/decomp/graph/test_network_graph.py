import pytest
import shared_layers
import torch
from networks import CHAIN_INPUT, block, chain
from torch import nn
from torch.nn import functional as F

from decomp.errors import TraceError
from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn


def view(module, shape):
    return NetworkGraph(trace(module), shape)


def test_a_chain_is_read_in_order_with_its_spaces():
    layers = view(chain(), CHAIN_INPUT).layers
    assert [layer.name for layer in layers] == ["0", "3", "5", "8", "13", "16"]
    assert [layer.kind for layer in layers] == ["conv"] * 4 + ["linear"] * 2
    assert layers[1].in_hw == (12, 12) and layers[1].out_hw == (6, 12)
    assert layers[0].left_alone == {"prune": "reads the image itself"}
    spaces = [layer.input_space for layer in layers[1:]]
    assert [space.producer for space in spaces] == ["0", "3", "5", "8", "13"]
    assert spaces[0].carriers == ("1",) and spaces[2].carriers == ("6",)
    assert spaces[3].repeat == 18 and spaces[3].map_shape == (3, 6)
    assert "spatial" in layers[3].left_alone and "channel" not in layers[3].left_alone


def test_activations_are_those_that_follow_directly():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Identity(), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU6(),
        nn.Conv2d(4, 4, 1), nn.GELU(), nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    found = [layer.activation for layer in view(module, (1, 8, 8)).layers]
    assert found == ["relu", "identity", "relu6", "GELU", "identity"]


def test_inner_spaces_of_branches_are_narrowed_and_shared_ones_sampled():
    layers = {layer.name: layer for layer in view(block(), (3, 8, 8)).layers}
    assert layers["conv2"].input_space.producer == "conv1" and layers["conv2"].input_space.carriers == ("bn1",)
    assert layers["conv1"].input_space.sampled and layers["conv1"].input_space.width == 8
    assert layers["depthwise"].left_alone["channel"] == "depthwise convolution"
    assert layers["head"].left_alone["prune"] == "its input is also read by conv1"
    assert "spatial" not in layers["conv1"].left_alone
    without = NetworkGraph(trace(block()), (3, 8, 8), sampler=False).layer("conv1")
    assert without.input_space is None and without.left_alone["prune"] == "its input is also read by head"


def test_the_last_layer_before_a_sum_makes_up_for_the_shortcut():
    graph = view(block(), (3, 8, 8))
    found = {layer.name: graph.shortcuts(layer).get(graph.node(layer)) for layer in graph.layers}
    assert [name for name, node in found.items() if node is not None] == []  # the normalisation lies between
    network = trace(block())
    fold_bn(network)
    graph = NetworkGraph(network, (3, 8, 8))
    found = {layer.name: graph.shortcuts(layer).get(graph.node(layer)) for layer in graph.layers}
    assert {name for name, node in found.items() if node is not None} == {"conv2"}
    assert found["conv2"].target is F.relu


def test_a_shortcut_that_does_nothing_may_be_called_after_the_branch():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv2 = nn.Conv2d(3, 3, 1)
            self.conv, self.shortcut = nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Dropout(), nn.Identity())
            self.other, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.conv(x) + self.shortcut(x)
            x = self.other(x) + torch.tanh(x)
            first = self.shortcut(self.conv2(x))
            return first + self.last(x)

    graph = view(Block(), (3, 8, 8))
    assert graph.shortcuts(graph.layer("conv"))[graph.node(graph.layer("conv"))].op == "placeholder"
    assert graph.layer("other").recovers is None  # the other value is made after it
    # Not where it was first made: what nobody reads any more is no longer held while the network runs.
    assert graph.shortcuts(graph.layer("last"))[graph.node(graph.layer("last"))].target == "shortcut.1"


def test_depthwise_convolutions_are_carried_between_expansion_and_projection():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 12, 1), nn.ReLU6(), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU6(),
        nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    layer = view(module, (3, 9, 9)).layer("5")
    assert layer.input_space.producer == "1" and layer.input_space.carriers == ("3",)


def test_a_layer_called_several_times_has_the_sizes_of_all_calls_and_all_steps_that_one_call_has():
    graph = view(shared_layers.make("pyramid"), shared_layers.INPUT)
    tower, out = graph.layer("tower"), graph.layer("out")
    assert [hw for _, hw in tower.calls] == [(6, 6), (3, 3), (2, 2)] and len(graph.calls(tower)) == 3
    assert graph.calls(tower)[0].name == tower.node and tower.fitted and "channel" not in tower.left_alone
    # The tower's input is shared by the levels; what it writes is the head's alone.
    assert tower.input_space.sampled and out.input_space.producer == "tower" and out.input_space.width == 14


def test_a_shared_encoder_is_pruned_like_one_that_is_called_once():
    graph = view(shared_layers.make("siamese"), shared_layers.INPUT)
    b = graph.layer("b")
    assert b.input_space.producer == "a" and graph.layer("a").input_space.sampled
    assert [node.name for node in graph.shortcuts(b)] == [node.name for node in graph.calls(b)]
    assert graph.shortcuts(b)[graph.calls(b)[0]] is not graph.shortcuts(b)[graph.calls(b)[1]]
    assert "image" in graph.layer("stem").left_alone["prune"]


def test_a_layer_that_reads_its_own_output_keeps_those_channels_for_itself():
    graph = view(shared_layers.make("recursive"), shared_layers.INPUT)
    again, hidden = graph.layer("again"), graph.layer("hidden")
    assert again.activation == "relu" and again.input_space.sampled and "channel" not in again.left_alone
    assert hidden.activation == "several" and "also read by" in hidden.left_alone["prune"]


def test_a_layer_on_maps_that_are_folded_into_the_batch_is_fitted_like_one_that_is_called_for_each():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.conv(torch.cat([x[:, :3], x[:, 3:]]))
            return self.out(torch.cat(x.chunk(2), 1))

    graph = view(Parts(), (6, 8, 8))
    conv, out = graph.layers
    assert conv.fitted and conv.calls == (((8, 8), (6, 6)),) * 2 and len(graph.calls(conv)) == 1
    assert out.fitted and len(out.calls) == 1
    # The halves are cut alike: a channel that goes is missing in both.
    (space,) = graph.spaces.read_by("out")
    assert space.producers == ("conv",) and space.width == 4


@pytest.mark.parametrize(
    ("reshape", "prunable"),
    [
        (lambda x: x.view(x.size(0), -1), True),
        (lambda x: x.reshape(x.shape[0], -1), True),
        (lambda x: x.flatten(1), True),
        (lambda x: torch.flatten(x, 1), True),
        (lambda x: x.view(-1, 4 * 36), False),
        (lambda x: x.permute(0, 2, 3, 1).flatten(1), False),
        (lambda x: x.transpose(2, 3).flatten(1), False),
    ],
)
def test_flattening_is_understood_only_where_channels_stay_whole(reshape, prunable):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, x):
            return self.out(reshape(self.conv(x)))

    layer = view(Net(), (1, 8, 8)).layers[1]
    assert (layer.input_space is not None) == prunable
    assert ("prune" in layer.left_alone) != prunable


def test_global_mean_keeps_one_column_per_channel():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.conv(x).mean((2, 3)))

    space = view(Net(), (1, 8, 8)).layers[1].input_space
    assert space.repeat == 1 and space.map_shape == (1, 1)


def test_a_wrong_input_size_is_refused_in_one_line():
    with pytest.raises(TraceError, match="does not run at input size 3x12x12") as caught:
        view(chain(), (3, 12, 12))
    assert "\n" not in str(caught.value)


def test_a_network_that_does_not_run_at_a_size_is_refused_without_a_traceback(capsys):
    with pytest.raises(TraceError, match="does not run at input size 3x4x4"):
        view(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 5)), (3, 4, 4))
    assert capsys.readouterr() == ("", "")


def test_a_transposed_convolution_that_is_given_an_output_size_of_any_images_is_left_alone():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.up = nn.Conv2d(3, 8, 3, 2, padding=1), nn.ConvTranspose2d(8, 8, 3, 2, padding=1)
            self.b = nn.Conv2d(8, 8, 3)

        def forward(self, x):
            return self.b(self.up(self.a(x), output_size=x.shape[2:]))

    graph = view(Up().eval(), (3, 16, 16))  # traced for images of any size
    up = graph.layer("up")
    assert set(up.left_alone) == {"spatial", "channel", "prune"} and not up.fitted
    assert "output size" in up.left_alone["spatial"]
    assert graph.layer("a").fitted and graph.layer("b").fitted


def test_a_graph_is_rebuilt_by_its_own_rules_or_by_another_one_for_samplers():
    limits = FittingLimits(10, most_columns=60)
    graph = NetworkGraph(trace(block()), (3, 8, 8), "one", fitting=limits, sampler=False)
    for again in (graph.rebuilt(), graph.rebuilt(trace(block())), graph.copied()):
        assert again.layers == graph.layers and (again.name, again.input_shape) == ("one", (3, 8, 8))
        assert again.layer("conv1").left_alone["prune"].startswith("72 columns")
    sampled = NetworkGraph(trace(block()), (3, 8, 8), sampler=True)
    private = sampled.rebuilt(sampler=False)
    assert private.layer("conv1").input_space is private.rebuilt().layer("conv1").input_space is None
    assert sampled.rebuilt().layer("conv1").input_space == sampled.layer("conv1").input_space is not None


def test_the_network_of_a_copied_graph_is_its_own():
    graph = view(block(), (3, 8, 8))
    other = graph.copied(sampler=False)
    with torch.no_grad():
        other.module.get_submodule("conv1").weight.zero_()
    assert graph.module.get_submodule("conv1").weight.any() and graph.rebuilt().module is graph.module
    assert other.layer("conv1").input_space is None
