"""Batch normalisations are folded, and inserted for a training, without a change of the outputs."""

import copy

import pytest
import shared_layers
import torch
from networks import CHAIN_INPUT, UPWARD_INPUT, block, chain, randomise, upward
from torch import nn

from decomp.graph.tracing import trace
from decomp.surgery import batchnorm


def network():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(4, 3, (3, 1), padding=(1, 0), bias=False), nn.Conv2d(3, 6, (1, 3), padding=(0, 1)))
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), chain, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 3)]
    return nn.Sequential(*layers).eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [3 + 2 * torch.randn(16, 2, 5, 5, generator=generator) for _ in range(4)]


def test_only_convolutions_and_the_ends_of_chains_are_taken():
    assert batchnorm.last_convolutions(network(), ["0", "1", "2", "5"]) == ["0", "2.1"]


def test_the_network_computes_what_it_did_in_evaluation_and_nearly_so_in_training():
    net, images = network(), batches()
    wanted = [net(x) for x in images]
    paths = batchnorm.last_convolutions(net, ["0", "2"])
    batchnorm.insert_behind(net, paths, images)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 2
    assert not any(m.num_batches_tracked for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    for x, y in zip(images, wanted):
        torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-5)
    # The statistics are those of all batches together: on these as one batch training mode says the same.
    together = torch.cat(images)
    torch.testing.assert_close(net.train()(together), torch.cat(wanted), rtol=1e-3, atol=1e-3)


def test_what_was_trained_is_folded_into_plain_convolutions():
    net, images = network(), batches()
    before = dict(net.state_dict())
    paths = batchnorm.last_convolutions(net, ["0", "2"])
    batchnorm.insert_behind(net, paths, images)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for x in images:
        optimizer.zero_grad()
        net.train()(x).square().mean().backward()
        optimizer.step()
    trained = net.eval()(images[0])
    batchnorm.fold_inserted(net, paths)
    assert {name: tuple(v.shape) for name, v in net.state_dict().items()} == {
        name: tuple(v.shape) for name, v in before.items()
    }
    torch.testing.assert_close(net(images[0]), trained, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(images[0]), network()(images[0]), atol=1e-3)


def test_a_dead_channel_stays_finite():
    net = network()
    with torch.no_grad():
        net[0].weight[1].zero_()
    wanted = net(batches()[0])
    batchnorm.insert_behind(net, ["0"], batches())
    torch.testing.assert_close(net(batches()[0]), wanted, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(net.train()(batches()[0])).all()


def images(shape, n=4):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("make", "shape", "n_folded"), [(chain, CHAIN_INPUT, 3), (block, (3, 8, 8), 2)])
def test_folding_keeps_the_outputs_with_random_statistics(make, shape, n_folded):
    module, x = make(), images(shape)
    network = trace(module)
    folded = batchnorm.fold_bn(network)
    assert len(folded) == n_folded
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in network.modules())
    assert torch.allclose(network(x), module(x), atol=1e-5)
    assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def test_a_normalisation_that_others_read_past_is_not_folded():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    module = randomise(Fork())
    network = trace(module)
    assert batchnorm.fold_bn(network) == []
    assert torch.equal(network(images((2, 4, 4))), module(images((2, 4, 4))))


@pytest.mark.parametrize("repeated", ["conv", "bn"])
def test_a_layer_or_normalisation_called_twice_is_not_folded(repeated):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.bn(self.conv(x))
            return self.conv(x) if repeated == "conv" else self.bn(self.other(x))

    assert batchnorm.fold_bn(trace(randomise(Twice()))) == []


def test_a_normalisation_behind_every_call_of_a_layer_is_folded_once():
    network = trace(shared_layers.make("siamese"))
    images = torch.randn(4, *shared_layers.INPUT, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(images)
        assert batchnorm.fold_bn(network) == [("stem", "norm")]
        assert torch.allclose(network(images), before, atol=1e-5)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_normalisation_behind_a_transposed_convolution_is_folded_where_torch_can(groups):
    module = randomise(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups), nn.BatchNorm2d(6)))
    network, x = trace(module), images((4, 5, 5))
    assert batchnorm.fold_bn(network) == ([("0", "1")] if groups == 1 else [])
    with torch.no_grad():
        assert torch.allclose(network(x), module(x), atol=1e-5)


def test_normalisations_are_inserted_behind_transposed_convolutions_and_folded_again():
    module = upward()
    batchnorm.fold_bn(folded := trace(module))
    paths = batchnorm.last_convolutions(folded, ["0", "3", "5", "7", "9"])
    x = images(UPWARD_INPUT)
    with torch.no_grad():
        before = folded(x)
        batchnorm.insert_behind(folded, paths, [x])
        assert len(paths) == 5 and torch.allclose(folded(x), before, atol=1e-4)
        assert torch.allclose(copy.deepcopy(folded).train()(x), before, atol=1e-3)
        batchnorm.fold_inserted(folded, paths)
        assert torch.allclose(folded(x), before, atol=1e-3) and isinstance(
            folded.get_submodule("3"), nn.ConvTranspose2d
        )


def test_normalisations_come_back_to_their_own_places_and_are_folded_there():
    net = randomise(nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5), nn.BatchNorm1d(5),
    ))  # fmt: skip
    traced = trace(net)
    assert batchnorm.fold_bn(traced) == [("0", "1"), ("4", "5")]
    images, places = batches(), {"0": "1", "4": "5"}
    wanted = traced(images[0])
    batchnorm.insert_behind(traced, ["0", "4"], images, places)
    assert [type(traced.get_submodule(name)) for name in ("0", "1", "4", "5")] == [
        nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.BatchNorm1d,
    ]  # fmt: skip
    assert traced.get_submodule("0").bias is None and torch.allclose(traced(images[0]), wanted, rtol=1e-4, atol=1e-4)
    rows = traced.get_submodule("4")(net[:4](torch.cat(images)))
    assert torch.allclose(traced.get_submodule("5").running_var, rows.var(0, correction=0), rtol=1e-3)
    traced.get_submodule("5").weight.data.mul_(2)
    changed = traced(images[0])
    batchnorm.fold_at(traced, places)
    assert not [m for m in traced.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert torch.allclose(traced(images[0]), changed, rtol=1e-4, atol=1e-4)
    batchnorm.fold_at(traced, places)  # nothing is left to fold
    assert torch.allclose(traced(images[0]), changed, rtol=1e-4, atol=1e-4)
