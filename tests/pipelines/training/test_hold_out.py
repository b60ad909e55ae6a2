"""The split of the training images into those trained on and those held out."""

import pytest
import torch

from decomp.errors import UsageError
from decomp.pipelines.training.hold_out import hold_out


def test_hold_out_is_a_seeded_partition():
    train_part, held_out = hold_out(100, 0)
    assert len(held_out) == 10
    assert torch.equal(torch.cat([train_part, held_out]).sort().values, torch.arange(100))
    assert torch.equal(held_out, hold_out(100, 0)[1])
    assert not torch.equal(held_out, hold_out(100, 1)[1])
    assert torch.equal(held_out, held_out.sort().values)


def test_a_tenth_is_held_out_but_at_least_one_image_and_at_most_five_thousand():
    assert len(hold_out(60000, 0)[1]) == 5000
    assert [len(part) for part in hold_out(2, 0)] == [1, 1]
    assert len(hold_out(300, 0, fraction=0.5)[1]) == 150


def test_the_draw_is_that_of_the_shipped_weights():
    """Another draw would validate them on images that they were trained on."""
    assert hold_out(1347, 0)[1][:6].tolist() == [0, 4, 10, 11, 16, 37]
    assert hold_out(60000, 0)[1][:6].tolist() == [14, 29, 55, 64, 73, 74]


def test_one_image_cannot_be_split():
    with pytest.raises(UsageError, match="at least 2"):
        hold_out(1, 0)
