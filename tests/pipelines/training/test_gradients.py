"""Gradients of a batch computed in parts, against those of the whole batch."""

import copy

import pytest
import torch
from torch import nn

from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.training.gradients import add_gradients
from decomp.pipelines.training.losses import loss_for
from tests.pipelines.training.small_training import Blobs, cross_entropy, small_net, train

CPU = torch.device("cpu")
OUTPUTS = Outputs((Output("output", "scores", (3,), variance=0.5),))


def gradients(net, loss, n_parts, n=17, labelled=True, **options):
    data, net = Blobs(n), copy.deepcopy(net).double()
    labels = data.labels if labelled else None
    value = add_gradients(net, loss, data.images.double(), labels, CPU, n_parts=n_parts, **options)
    return value.double(), torch.cat([parameter.grad.flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("labels", ["train", "none"])
@pytest.mark.parametrize("n_parts", [2, 5, 17])
def test_parts_of_a_batch_give_the_loss_and_the_gradients_of_the_whole(labels, n_parts):
    loss = loss_for(labels, False, small_net(1).double().eval(), OUTPUTS)
    net = small_net().eval()  # normalisations with the statistics that they have, no dropout
    labelled = labels == "train"
    value, whole = gradients(net, loss, 1, labelled=labelled)
    in_parts, summed = gradients(net, loss, n_parts, labelled=labelled)
    assert (summed - whole).norm() < 1e-6 * whole.norm()
    assert in_parts.item() == pytest.approx(value.item(), rel=1e-6)
    alone = gradients(net, loss, 1, n=-(-17 // n_parts), labelled=labelled)[1]  # the first part is not the batch
    assert (alone - whole).norm() > 1e-2 * whole.norm()


def test_a_share_without_an_image_for_a_part_adds_nothing_and_makes_as_many_backward_passes():
    calls = []

    def loss(module, images, labels):
        calls.append(len(images))
        return cross_entropy(module, images, labels)

    net = small_net().eval()
    whole, parts = gradients(net, loss, 1, n=2), gradients(net, loss, 3, n=2)
    assert calls == [2, 1, 1, 1]
    assert torch.allclose(parts[1], whole[1], rtol=1e-6) and parts[0].item() == pytest.approx(whole[0].item())


def test_the_weight_is_that_of_the_loss_and_gradients_add_to_those_that_are_there():
    net, data = small_net().eval(), Blobs(8)
    once = gradients(net, cross_entropy, 3, n=8, weight=0.25)[1]
    whole = gradients(net, cross_entropy, 1, n=8)[1]
    assert torch.allclose(once, whole / 4, rtol=1e-5)
    for _ in range(2):
        add_gradients(net, cross_entropy, data.images, data.labels, CPU, n_parts=2)
    twice = torch.cat([parameter.grad.flatten() for parameter in net.parameters()]).double()
    assert torch.allclose(twice, 2 * whole, rtol=1e-3, atol=1e-6)


def test_a_training_in_parts_is_the_training_in_whole_batches():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    data = Blobs()
    data.images = data.images.double()
    whole, parts = copy.deepcopy(net), copy.deepcopy(net)
    train(whole, data)
    train(parts, data, n_parts=3)
    one, other = (torch.cat([p.flatten() for p in net.parameters()]) for net in (whole, parts))
    assert (one - other).norm() < 1e-6 * (one - torch.cat([p.flatten() for p in net.parameters()])).norm()
