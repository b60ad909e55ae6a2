"""Loss on held-out images: which images, the paired count, and the changed first classes without labels."""

import pytest
import torch
from torch import nn

from decomp.data.splits import MemorySplit
from decomp.data.transforms import Augmentation, Normalisation
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.measure.held_out_loss import HeldOutImages, held_out_loss, images_outside_fits
from decomp.pipelines.measure.intervals import paired_difference, wilson

CPU = torch.device("cpu")
SCORES = Outputs((Output("output", "scores", (4,)),))


class Table(nn.Module):
    """Answers image number i, which is its pixel, with class answers[i]."""

    def __init__(self, answers):
        super().__init__()
        self.scores = nn.functional.one_hot(torch.tensor(answers), 4).float()

    def forward(self, x):
        return self.scores[x[:, 0, 0, 0].long()]


def images(labels, n=8):
    pixels = torch.arange(n, dtype=torch.float32)[:, None, None, None]
    labels = None if labels is None else torch.tensor(labels)
    split = MemorySplit(pixels, labels, (1, 1, 1), Normalisation(1.0), Augmentation())
    return HeldOutImages(split, torch.arange(1, n), "table")


def test_fitted_images_are_left_out_and_unseen_ones_come_first():
    fitted, unseen = torch.tensor([0, 1, 2, 7]), torch.tensor([2, 5, 8])
    assert images_outside_fits(10, fitted, unseen).tolist() == [3, 4, 5, 6, 8, 9]
    assert images_outside_fits(10, fitted, unseen, most=2).tolist() == [5, 8]
    assert images_outside_fits(10, fitted, unseen, most=4).tolist() == [3, 5, 8, 9]


def test_no_image_is_left_where_all_were_fitted():
    assert images_outside_fits(4, torch.arange(4), torch.tensor([1])).tolist() == []


def test_accuracy_is_lost_by_the_images_that_only_the_original_has_right():
    labels = [0, 1, 2, 3, 0, 1, 2, 3]
    original = Table([3, 1, 2, 3, 0, 1, 0, 0])  # of images 1 to 7: five right
    network = Table([0, 1, 2, 0, 1, 1, 2, 0])  # loses images 3 and 4, wins image 6
    loss = held_out_loss(original, network, images(labels), CPU, SCORES)
    assert (loss.kind, loss.n_images) == ("accuracy", 7)
    assert (loss.original, loss.network, loss.loss) == pytest.approx((5 / 7, 4 / 7, 1 / 7))
    assert (loss.low, loss.high) == paired_difference(2, 1, 7)
    assert "14.29 points of accuracy lost (71.43 % → 57.14 %" in loss.words()


def test_without_labels_the_changed_first_classes_are_lost():
    original, network = Table([0, 1, 2, 3, 0, 1, 2, 3]), Table([1, 1, 2, 0, 0, 1, 2, 1])
    loss = held_out_loss(original, network, images(None), CPU, SCORES)
    assert (loss.kind, loss.loss, loss.original) == ("agreement", 2 / 7, None)
    assert (loss.low, loss.high) == wilson(2, 7)


def test_of_values_the_share_of_the_variance_is_lost():
    table = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    original, network = Table([0] * 8), Table([0] * 8)
    original.scores, network.scores = table, table + 0.5
    outputs = Outputs((Output("output", "values", (3,), variance=2.0),))
    loss = held_out_loss(original, network, images([0] * 8), CPU, outputs)
    assert (loss.kind, loss.n_images) == ("values", 7)
    assert (loss.loss, loss.low, loss.high) == pytest.approx((0.125, 0.125, 0.125))
    network.scores = table + torch.tensor([0, 0, 0, 0, 1, 1, 1, 1.0])[:, None]
    loss = held_out_loss(original, network, images([0] * 8), CPU, outputs)
    half = 1.959964 * (7 * (4 / 7) * (3 / 7) / 6 / 7) ** 0.5 / 2
    assert (loss.loss, loss.low, loss.high) == pytest.approx((2 / 7, 2 / 7 - half, 2 / 7 + half))


def test_identity_depends_on_images_labels_and_indices():
    first = images([0] * 8)
    assert first.identity() == images([0] * 8).identity()
    assert first.identity() != images([1] * 8).identity()
    assert first.identity() != HeldOutImages(first.split, torch.arange(2, 8), "table").identity()
