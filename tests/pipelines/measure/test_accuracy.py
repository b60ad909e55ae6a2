"""Accuracy on a split against a naive count, and labels beyond the network's outputs."""

import pytest
import torch

from decomp.errors import UsageError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.measure import accuracy as measured
from decomp.pipelines.measure.accuracy import accuracy, check_labels, logits_of, outputs_of
from tests.pipelines.training.small_training import Blobs, small_net


def test_accuracy_equals_a_naive_count():
    data = Blobs()
    net = small_net().eval()
    order = torch.arange(5, 25)
    naive = sum(int(net(data.images[i : i + 1]).argmax()) == int(data.labels[i]) for i in order.tolist()) / 20
    assert accuracy(net, data, order, torch.device("cpu"), batch_size=7) == naive


def test_a_label_without_an_output_is_refused():
    check_labels(torch.tensor([0, 2]), torch.zeros(2, 3), "digits")
    with pytest.raises(UsageError, match="digits: its labels must be below 3, .* got 3"):
        check_labels(torch.tensor([0, 3]), torch.zeros(2, 3), "digits")


def test_logits_are_those_of_evaluation_mode_whatever_the_batch_size():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)).train()
    with torch.no_grad():
        net[1].running_mean.copy_(torch.arange(8.0))
    images = torch.randn(5, 2, 2, 2, dtype=torch.float32)
    expected = (images.flatten(1) - torch.arange(8.0)) / (1 + net[1].eps) ** 0.5
    for batch_size in (2, 500):
        torch.testing.assert_close(logits_of(net, images, torch.device("cpu"), batch_size), expected)


def test_large_images_are_given_to_the_network_some_at_a_time(monkeypatch):
    sizes = []

    class Noting(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x.flatten(1)

    images, cpu = torch.randn(7, 1, 2, 3), torch.device("cpu")
    monkeypatch.setattr(measured, "ENTRIES_AT_A_TIME", 18)
    assert torch.equal(logits_of(Noting(), images, cpu), images.flatten(1)) and sizes == [3, 3, 1]
    monkeypatch.setattr(measured, "ENTRIES_AT_A_TIME", 5)
    outputs = Outputs((Output("output", "values", (6,)),))
    assert torch.equal(outputs_of(Noting(), images, cpu, outputs)["output"], images.flatten(1))
    assert sizes[3:] == [1] * 7


def test_images_without_labels_have_no_accuracy():
    class Unlabelled(Blobs):
        def batches(self, order, batch_size, *, augment_seed=None):
            for images, _ in super().batches(order, batch_size, augment_seed=augment_seed):
                yield images, None

    with pytest.raises(UsageError, match="must have labels"):
        accuracy(small_net(), Unlabelled(), torch.arange(3), torch.device("cpu"))
