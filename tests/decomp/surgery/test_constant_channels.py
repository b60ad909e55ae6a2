"""Constants of dropped channels in the biases of their readers: where exact, where not, and the words for it."""

import copy

import pytest
import torch
from networks import randomise
from small_graphs import INPUT, make
from torch import nn

from decomp.criteria.candidates import candidates
from decomp.criteria.scores import scorable
from decomp.errors import UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.constant_channels import move_constants, silence
from decomp.surgery.narrow_network import shrink

KEEP = {"0": [0, 2, 3, 6]}  # of 8 channels


def images(n=4, shape=(3, 9, 9)):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))


def network(*reader, activation=nn.Sigmoid):
    """A convolution with a normalisation and an activation in front of some reader."""
    return trace(randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation(), *reader)))


def pruned(net, shape=(3, 9, 9), batches=None, **options):
    """Outputs with silenced channels, outputs of the smaller network, the report and the smaller network."""
    spaces = NetworkGraph(net, shape).spaces
    assert silence(net, spaces, KEEP) == ["1"]
    with torch.no_grad():
        wanted = net(images(shape=shape))
    moved = move_constants(net, spaces, KEEP, [images(shape=shape)] if batches is None else batches, **options)
    shrink(net, spaces, KEEP)
    with torch.no_grad():
        return wanted, net(images(shape=shape)), moved, net


HEAD = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
EXACT = {
    "1x1": (nn.Conv2d(8, 5, 1), *HEAD),
    "without padding": (nn.Conv2d(8, 5, 3, stride=2), *HEAD),
    "without bias": (nn.Conv2d(8, 5, 3, bias=False), *HEAD),
    "reflected": (nn.Conv2d(8, 5, 3, padding=1, padding_mode="reflect"), *HEAD),
    "same 1x1": (nn.Conv2d(8, 5, 1, padding="same"), *HEAD),
    "linear": (nn.Flatten(), nn.Linear(8 * 49, 3)),
    "pooled": (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 3, bias=False)),
    "transposed 1x1": (nn.ConvTranspose2d(8, 5, 1), *HEAD),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Softplus])
def test_a_constant_moved_into_the_bias_leaves_the_outputs_as_they_were(name, activation):
    net = network(*copy.deepcopy(EXACT[name]), activation=activation)
    with torch.no_grad():
        net.get_submodule("1").bias[[1, 4]] = torch.tensor([0.9, 0.4])
    wanted, got, moved, _ = pruned(net)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    ((layer, channels, inexact),) = [(m.layer, m.channels, m.inexact) for m in moved]
    assert net.get_submodule(layer).bias is not None and inexact is None and channels >= 2
    without = network(*copy.deepcopy(EXACT[name]), activation=activation)
    without.load_state_dict({**without.state_dict(), "1.bias": torch.ones(8)})
    spaces = NetworkGraph(without, (3, 9, 9)).spaces
    silence(without, spaces, KEEP)
    with torch.no_grad():
        wanted = without(images())
        shrink(without, spaces, KEEP)
        assert (without(images()) - wanted).abs().max() > 1e-3  # dropped without moving, the outputs change


def test_a_reader_without_bias_gives_the_constant_to_the_mean_of_its_normalisation():
    wanted, got, moved, net = pruned(network(nn.Conv2d(8, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), *HEAD))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert net.get_submodule("3").bias is None
    assert [(m.layer, m.channels, m.inexact) for m in moved] == [("3", 4, None)]


class Beside(nn.Module):
    """A layer whose output is also read without its normalisation."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid())
        self.b, self.norm, self.head = nn.Conv2d(8, 5, 1, bias=False), nn.BatchNorm2d(5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.head((x + self.norm(x)).mean((2, 3)))


class Shared(Beside):
    """A normalisation that another layer has too."""

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 5, 3, bias=False)

    def forward(self, x):
        return self.head((self.norm(self.b(self.a(x))) + torch.relu(self.norm(self.other(x)))).mean((2, 3)))


@pytest.mark.parametrize("kind", [Beside, Shared])
def test_a_normalisation_that_is_not_the_layers_alone_is_left_as_it_is(kind):
    net = trace(randomise(kind()))
    spaces, keep = NetworkGraph(net, (3, 9, 9)).spaces, {"a.0": [0, 1]}
    silence(net, spaces, keep)
    mean = net.norm.running_mean.clone()
    with torch.no_grad():
        wanted = net(images())
        move_constants(net, spaces, keep, [images()])
        shrink(net, spaces, keep)
        torch.testing.assert_close(net(images()), wanted, rtol=1e-5, atol=1e-5)
    assert net.b.bias is not None and torch.equal(net.norm.running_mean, mean)


def test_zero_padding_is_named_and_only_the_borders_differ():
    net = network(nn.Conv2d(8, 5, 3, padding=1))
    wanted, got, moved, _ = pruned(net)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], rtol=1e-5, atol=1e-5)
    assert (got - wanted).abs().max() > 1e-2
    assert [m.inexact for m in moved] == ["zero padding at the borders does not have the constant's value"]


def test_a_transposed_convolution_keeps_its_mean_and_is_named():
    wanted, got, moved, _ = pruned(network(nn.ConvTranspose2d(8, 5, 2, stride=2)))
    assert [m.inexact for m in moved] == ["positions of a transposed convolution see different parts of its kernel"]
    # Each pixel sees one entry of the kernel; the bias has their mean.
    torch.testing.assert_close(got.mean((2, 3)), wanted.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert (got - wanted).abs().max() > 1e-3


def test_channels_that_are_zero_behind_the_activation_need_nothing():
    net = network(nn.Conv2d(8, 5, 3, padding=1), activation=nn.ReLU)
    with torch.no_grad():
        net.get_submodule("1").bias.copy_(-torch.ones(8))
    before = net.get_submodule("3").bias.clone()
    wanted, got, moved, net = pruned(net)
    assert moved == [] and torch.equal(net.get_submodule("3").bias, before)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("means", [False, True])
def test_channels_that_vary_are_left_alone_or_give_their_means(means):
    net = network(nn.Conv2d(8, 5, 1), *copy.deepcopy(HEAD))
    spaces = NetworkGraph(net, (3, 9, 9)).spaces
    before = net.get_submodule("3").bias.clone()
    with torch.no_grad():
        wanted = net(images(64))
        inputs = net.get_submodule("2")(net.get_submodule("1")(net.get_submodule("0")(images(64))))
    moved = move_constants(net, spaces, KEEP, images(64).split(32), means=means)
    words = "their means were moved" if means else "they were not moved"
    assert [m.inexact for m in moved] == [f"4 of its dropped channels are not constant: {words}"]
    weight = net.get_submodule("3").weight.detach()[:, [1, 4, 5, 7], 0, 0]
    change = weight @ inputs.mean((0, 2, 3))[[1, 4, 5, 7]] if means else torch.zeros(5)
    torch.testing.assert_close(net.get_submodule("3").bias.detach(), before + change, rtol=1e-4, atol=1e-5)
    if means:
        shrink(net, spaces, KEEP)
        with torch.no_grad():
            # The mean of the outputs is that from before: nothing that is not linear lies behind the reader.
            torch.testing.assert_close(net(images(64)).mean(0), wanted.mean(0), rtol=1e-4, atol=1e-4)


# Readers that see channels which vary: a concatenation passes them around the normalisation, a gate scales them.
VARYING = {
    "residual": set(), "dense": {"a", "d", "head"}, "depthwise separable": set(), "grouped": set(),
    "squeeze-excite": {"b.0"}, "chunk": set(), "dilated": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", VARYING)
def test_small_graphs_without_zero_padding_keep_their_outputs(name):
    module = make(name)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.padding_mode = "circular"
    net = trace(module)
    spaces = NetworkGraph(net, INPUT).spaces
    names = scorable(net, spaces, candidates(spaces), "bn-scale")
    keep = {one: list(range(0, spaces[one].width, 2)) for one in names}
    silence(net, spaces, keep)
    small = copy.deepcopy(net)
    moved = move_constants(small, spaces, keep, [images(shape=INPUT)])
    assert {m.layer for m in moved if m.inexact} == VARYING[name]
    shrink(small, spaces, keep)
    with torch.no_grad():
        wanted, got = net(images(shape=INPUT)), small(images(shape=INPUT))
    if not VARYING[name]:
        assert sum(m.channels for m in moved) >= 6
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_no_images_are_refused():
    net = network(nn.Conv2d(8, 5, 1))
    with pytest.raises(UsageError, match="images: at least one image is needed to see which channels are constant"):
        move_constants(net, NetworkGraph(net, (3, 9, 9)).spaces, KEEP, [])
