"""Batch normalisations that are put in for a training, and dropout that is switched off."""

import copy

import pytest
import torch
from torch import nn

from decomp.pipelines.training.batchnorm import MIN_BATCH_SIZE, disable_dropout, insert_batchnorm, keep_statistics
from decomp.pipelines.training.recipe import Recipe
from decomp.surgery import batchnorm


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 3)).eval()


IMAGES = 3 * torch.randn(100, 1, 6, 6, generator=torch.Generator().manual_seed(1)) + 1


def batches(order, batch_size, augment_seed):
    for indices in order.split(batch_size):
        yield IMAGES[indices], None


def insert(net, layers, batch_size, n_images=100):
    return insert_batchnorm(net, layers, Recipe(1, 0.1, batch_size), n_images, batches)


def test_they_stand_behind_the_layers_and_change_no_output():
    net = network()
    before = net(IMAGES)
    paths = insert(net, ["0", "2", "4"], 20)
    assert paths == ["0", "2"]
    assert [isinstance(net[int(path)].norm, nn.BatchNorm2d) for path in paths] == [True, True]
    torch.testing.assert_close(net.eval()(IMAGES), before, rtol=1e-4, atol=1e-4)


def test_their_statistics_are_those_of_the_training_images():
    net, conv = network(), network()[0]
    conv.load_state_dict(net[0].state_dict())
    insert(net, ["0"], 20)
    outputs = conv(IMAGES) - conv.bias.view(-1, 1, 1)  # the normalisation has the bias now
    torch.testing.assert_close(net[0].norm.running_mean, outputs.mean((0, 2, 3)))
    torch.testing.assert_close(net[0].norm.running_var, outputs.var((0, 2, 3), correction=0))


def test_the_images_are_the_same_in_every_call_and_differ_by_seed():
    orders = []

    def watched(order, batch_size, augment_seed):
        orders.append((order.tolist(), augment_seed))
        return batches(order, batch_size, augment_seed)

    for seed in (0, 0, 1):
        insert_batchnorm(network(), ["0"], Recipe(1, 0.1, 30, seed=seed), 100, watched)
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0][0]) == len(set(orders[0][0])) == 90  # batches of one size


@pytest.mark.parametrize("batch_size, n_images, put_in", [
    (MIN_BATCH_SIZE, 100, True), (MIN_BATCH_SIZE - 1, 100, False), (64, MIN_BATCH_SIZE - 1, False),
])  # fmt: skip
def test_small_batches_have_none(batch_size, n_images, put_in):
    net = network()
    assert bool(insert(net, ["0"], batch_size, n_images)) == put_in
    assert isinstance(net[0], nn.Sequential) == put_in


def test_folding_gives_the_layers_back():
    net = network()
    before = net(IMAGES)
    batchnorm.fold_inserted(net, insert(net, ["0", "2"], 20))
    assert [type(part) for part in net] == [type(part) for part in network()]
    torch.testing.assert_close(net(IMAGES), before, rtol=1e-4, atol=1e-4)


def test_without_dropout_training_mode_computes_what_evaluation_does():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3), nn.Sequential(nn.Dropout1d(0.9)))
    images = torch.randn(4, 3, 2, 2)
    expected = net.eval()(images)
    assert not torch.equal(net.train()(images), expected)
    disable_dropout(net)
    assert torch.equal(net.train()(images), expected)


def test_kept_statistics_are_used_in_training_and_do_not_change():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    net[1].running_mean.fill_(0.3)
    before = copy.deepcopy(net)
    keep_statistics(net)
    net.train()
    with torch.no_grad():
        expected = before[:3].eval()(IMAGES)
        assert torch.equal(net[:3](IMAGES), expected)
    assert torch.equal(net[1].running_mean, before[1].running_mean) and net[1].num_batches_tracked == 0
    assert net[3].training and net[1].weight.requires_grad
