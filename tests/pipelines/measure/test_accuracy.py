"""Accuracy on a split against a naive count, and labels beyond the network's outputs."""

import pytest
import torch

from decomp.errors import UsageError
from decomp.pipelines.measure.accuracy import accuracy, check_labels
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
